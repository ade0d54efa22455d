"""Pages of HTML that need nothing but themselves: markup, the look that all pages share, charts and players."""
