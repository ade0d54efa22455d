"""Floor 6: the training loop, and the data, state and log around it."""
