"""Floor 3: the bundled M2D-CLAP trainer, audio encoding and zero-shot classification."""
