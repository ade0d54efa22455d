"""Results as documents: Markdown, a page with bars, confusions and players, comparisons, and all tasks in one table."""
