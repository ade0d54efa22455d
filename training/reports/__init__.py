"""The page of a training run, and the choice of the page for whatever is reported."""
