"""Weights on disk: checkpoints, initial weights, and other programs' files."""
