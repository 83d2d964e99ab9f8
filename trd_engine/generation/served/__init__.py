"""Sampling by HTTP: a client of one or several equal servers, and vLLM servers that take adapters by version."""
