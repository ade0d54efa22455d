"""The web page of a store of sounds: words, clips, neighbours and a map, served on this machine."""
