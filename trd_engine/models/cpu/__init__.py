"""Layers that replace a model's own during a training step on a CPU."""
