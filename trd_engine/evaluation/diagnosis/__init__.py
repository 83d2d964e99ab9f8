"""What a round says of prefix failure, before anything is trained on it."""
