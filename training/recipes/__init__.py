"""Named recipes of training and the settings that only some objectives have. Nothing here imports from training."""
