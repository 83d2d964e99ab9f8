"""docker-compose.yml as Compose reads it: parsed, with variables filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).parents[2]
COMPOSE_FILE = CHECKOUT / "docker-compose.yml"

_VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?:(?P<operator>:[-?])(?P<argument>[^}]*))?\})")


class VariableMissingError(Exception):
    """The file demands a variable that the environment lacks."""


def interpolate(text: str, environment: Mapping[str, str]) -> str:
    """Fill in ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}``; ``$$`` is a dollar sign."""

    def value(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        found = environment.get(match["name"], "")
        if found or match["operator"] is None:
            return found
        if match["operator"] == ":?":
            raise VariableMissingError(f"{match['name']}: {match['argument']}")
        return match["argument"]

    return _VARIABLE.sub(value, text)


def load(environment: Mapping[str, str]) -> dict[str, Any]:
    """Load the file with the variables of `environment`. Raises `VariableMissingError`."""
    document: dict[str, Any] = _filled(load_raw(), environment)
    return document


def load_raw() -> dict[str, Any]:
    """Load the file as it is written."""
    document: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text())
    return document


def _filled(node: Any, environment: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, environment) for key, value in _passed_on(node, environment).items()}
    if isinstance(node, list):
        return [_filled(value, environment) for value in node]
    return interpolate(node, environment) if isinstance(node, str) else node


def _passed_on(node: dict[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the variables that are passed on: one without a value is the environment's, and left out if that lacks
    it."""
    named = {key for key, value in node.items() if value is None and key.isupper()}
    return {
        key: environment.get(key) if key in named else value
        for key, value in node.items()
        if key not in named or key in environment
    }


def strings(node: Any) -> list[str]:
    """Return every string in a document."""
    if isinstance(node, dict):
        return [text for value in node.values() for text in strings(value)]
    if isinstance(node, list):
        return [text for value in node for text in strings(value)]
    return [node] if isinstance(node, str) else []
