"""Sound events and scenes that are found without training for them: by tags, by captions, by both; and how well."""
