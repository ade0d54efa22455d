"""Floor 6: work lists, shards, workers, recipes, the demo and the check of a data directory."""
