"""Floor 5: the command line. Parse, call one function, print."""
