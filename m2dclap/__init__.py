"""Floor 4: the M2D-CLAP models alone, usable without the trainer."""
