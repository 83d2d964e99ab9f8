"""Sends the deliveries of webhooks."""
