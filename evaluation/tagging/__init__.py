"""Tags of sounds: scores of a classifier for files of any length, whole, by windows, or by columns of patches."""
