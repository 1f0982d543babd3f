"""From losses to updates: a step, the loop around it, optimisers, devices."""
