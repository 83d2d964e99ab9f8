"""Models by name: those that a job may name, and those that jobs have made."""
