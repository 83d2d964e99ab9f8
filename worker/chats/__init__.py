"""Chats with checkpoints: an idle worker claims answers and generates them in child processes."""
