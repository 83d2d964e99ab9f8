"""Attention over packed sequences, and over one new token per row while decoding."""
