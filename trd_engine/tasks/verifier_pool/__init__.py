"""Child processes that judge answers under a time limit, so that a verifier that hangs costs one verdict."""
