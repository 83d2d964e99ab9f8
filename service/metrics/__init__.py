"""A job's metrics over its steps."""
