"""The divergences: a plain reference, and the chunked pass that never holds [tokens × vocabulary] logits."""
