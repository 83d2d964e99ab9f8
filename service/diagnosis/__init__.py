"""What each round says of prefix failure."""
