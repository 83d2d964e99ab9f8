"""Find out in minutes whether this machine can train, before the first job does."""
