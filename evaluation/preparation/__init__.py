"""From a data set as it is downloaded to a prepared folder, by the rule in a task's YAML file."""
