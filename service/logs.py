"""The log of this package: JSON on stderr. Headers and bodies are never logged."""

from __future__ import annotations

import logging

from contract.json_logs import JsonFormatter


def log_json() -> None:
    """Send this package's log to stderr. The rest of the process's logging is left as it is."""
    logger = logging.getLogger("service")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
