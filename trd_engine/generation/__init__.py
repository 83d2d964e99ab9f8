"""Sampling completions: one protocol, and a folder for each engine that samples."""
