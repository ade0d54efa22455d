"""Floor 5: how good a trained model is."""
