"""Floor 8: the command line. Parse, call one function, print."""
