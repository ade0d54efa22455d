"""What is made of a checkpoint: a start for training, a classifier, a model to fine-tune, other layouts."""
