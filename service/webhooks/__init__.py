"""Webhooks: receivers of an owner's events, and what was delivered to them. Workers send the deliveries."""
