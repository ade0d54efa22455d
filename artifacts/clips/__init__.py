"""Which clip a name means."""
