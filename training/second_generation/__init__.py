"""Stages 2 and 2.1 of M2D-CLAP 2025: a text tower learns from raw captions against a frozen audio encoder."""
