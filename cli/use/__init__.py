"""Commands that use what was made: look at it, search it, serve it."""
