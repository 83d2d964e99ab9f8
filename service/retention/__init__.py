"""What the retention policy would remove. The workers remove it, see ``worker.retention``."""
