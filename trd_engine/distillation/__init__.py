"""From a trajectory to its loss: sequences, micro-batches, token weights and scoring."""
