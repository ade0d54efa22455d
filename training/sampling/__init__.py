"""Which clips an epoch draws, by weights that follow from their labels."""
