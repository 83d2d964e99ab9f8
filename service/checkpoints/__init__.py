"""Checkpoints: list, inspect, download and delete them."""
