"""All that is needed to resume: writing, validating and pruning checkpoints. The manifest makes one valid."""
