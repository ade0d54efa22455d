"""Recipes: several stages in one file, run in order, and run again if something has changed."""
