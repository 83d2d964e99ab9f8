"""Who did what: an entry for each change and each download, written in the transaction that it describes."""
