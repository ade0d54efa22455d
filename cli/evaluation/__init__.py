"""Commands that judge models: the group evaluate, and its short form zero-shot."""
