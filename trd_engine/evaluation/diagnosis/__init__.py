"""What a round says about prefix failure, before anything is trained on it."""
