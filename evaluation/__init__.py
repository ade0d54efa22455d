"""Floor 5: what a trained model is worth."""
