"""From a trained network to predictions, metrics and pictures."""
