"""Sampling with vLLM: starting engines, requests, and loading new weights into a running engine."""
