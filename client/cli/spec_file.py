"""Job specs from YAML or JSON files, and ``key.path=value`` on the command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from client.cli.exit_codes import MisusedError
from client.errors import TrdError
from trd_data.unique_json import finite_float, loads_unique


class _Loader(yaml.SafeLoader):
    """YAML 1.2, without a key twice: ``1e-3`` is a number, ``010`` is 10, and ``on``, ``no`` and dates are strings."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse a key that the mapping has already: its first value would be lost without a word."""
        mapping = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in mapping.value:
            name = (key.tag, str(key.value))
            if name in lines:
                problem = f"key {key.value!r} is there already, in line {lines[name]}; keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[name] = key.start_mark.line + 1
        return mapping


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    try:
        return finite_float(str(loader.construct_scalar(node)))
    except ValueError as error:
        raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)
_RESOLVERS = (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
    ("tag:yaml.org,2002:float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
)
for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))


def parse_yaml(text: str) -> Any:
    """Parse a YAML document, which includes every JSON document. Raises `yaml.YAMLError`."""
    return yaml.load(text, Loader=_Loader)


def read_spec(path: Path) -> dict[str, Any]:
    """Read a spec from a file, or from the standard input for ``-``. Raises `TrdError` that says where it is wrong."""
    name = "standard input" if str(path) == "-" else str(path)
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise TrdError(f"{name} cannot be read: {reason}") from error
    try:
        document = loads_unique(text) if path.suffix == ".json" else parse_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise TrdError(f"{name}: {where}{error.problem or error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise TrdError(f"{name}: {error}") from error
    if not isinstance(document, dict):
        raise TrdError(f"{name}: a spec is a mapping of fields", hint="it begins like: mode: trd")
    return document


def parse_overrides(settings: Sequence[str]) -> dict[str, Any]:
    """Parse settings like ``optim.learning_rate=1e-4`` as nested fields; values are YAML. Raises `MisusedError`."""
    overrides: dict[str, Any] = {}
    for setting in settings:
        path, equals, value = setting.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise MisusedError(f"{setting}: is not key.path=value", hint="write it like optim.learning_rate=1e-4")
        try:
            parsed = parse_yaml(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = getattr(error, "problem", error)
            raise MisusedError(f"{setting:.100}: the value is not valid YAML: {reason}") from error
        overrides = merged(overrides, _nested(keys, parsed))
    return overrides


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    return {keys[0]: value if len(keys) == 1 else _nested(keys[1:], value)}


def merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `overrides` into `base`: mappings by key, everything else is replaced."""
    result = dict(base)
    for key, value in overrides.items():
        before = result.get(key)
        result[key] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return result


def flattened(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested fields by their path, ``optim.learning_rate``."""
    flat: dict[str, Any] = {}
    for key, value in spec.items():
        if isinstance(value, dict) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
