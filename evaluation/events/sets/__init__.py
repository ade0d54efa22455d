"""Tables of recordings with events, and the data sets that they are made of: TUT Rare Sound Events 2017, DESED."""
