"""Text encoders that are trained with the audio: stages 2 and 2.1 of M2D-CLAP 2025."""
