"""Fine-tuning on labels: the recipes of the papers, their augmentation, and checkpoints that EVAR reads."""
