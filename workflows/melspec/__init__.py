"""The conversion of a folder of sounds, from its plan to the list of its arrays."""
