"""Decoding: from the bytes of an audio file to samples, with checks that no sample is missing."""
