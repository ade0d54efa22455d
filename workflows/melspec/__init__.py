"""The conversion of a folder of sounds to log-mels, from the plan to the list of arrays."""
