"""Sampling with transformers: the generator, and a fast decoder for small batches on a CPU."""
