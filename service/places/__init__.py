"""Places: a page of the dashboard and what to look at on it, offered to the owner's open tabs."""
