"""The run: the loop, its setup, the optimizer step and the checkpoints."""
