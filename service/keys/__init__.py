"""API keys: made, listed, revoked, recognised."""
