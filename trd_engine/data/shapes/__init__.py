"""What a row means: one module per family of row shapes."""
