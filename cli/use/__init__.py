"""Commands that use a trained model on sounds of one's own."""
