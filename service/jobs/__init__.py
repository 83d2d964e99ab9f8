"""Jobs: admitted, recorded, shown, and led from status to status."""
