"""Sampling completions: one protocol, one file an engine."""
