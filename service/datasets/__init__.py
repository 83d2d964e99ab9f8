"""Uploaded problems: received, validated row by row, stored as they came."""
