"""Which models may be named, and what their folders say about them.

Reads JSON files of a model's folder and nothing more: no weights, no torch. The service asks it
before anything is queued; the worker asks it to turn a name into a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 2**28
"""Largest size of one JSON file of a model's folder; tokenizers of published models have up to 40 MB."""
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


class ModelRefusedError(ValueError):
    """The model may not be used, for the reason in the message."""


@dataclass(frozen=True)
class CatalogEntry:
    """One model of the operator's allow-list."""

    name: str
    """What a spec calls it."""
    source: str
    """A local folder, or a hub id that the worker downloads."""
    revision: str | None = None
    """Commit or tag of a hub id."""

    @property
    def is_local(self) -> bool:
        """True if the model is a folder on this machine."""
        return self.source.startswith("/")


@dataclass(frozen=True)
class ModelFacts:
    """What a local folder says about its model."""

    context_tokens: int | None
    """max_position_embeddings; None if the configuration does not say."""
    tokenizer_fingerprint: str
    """Equal for two folders whose tokenizers agree token for token."""
    vocabulary: dict[str, int]
    """Token to id, added tokens included."""
    special_tokens: frozenset[str]
    """Added tokens that stand for no text."""


def parse_catalog(setting: str) -> dict[str, CatalogEntry]:
    """Parse `TRD_MODELS`: comma-separated ``name=folder``, ``folder`` (named by its last part), ``folder/*`` (every
    model folder in it) or ``owner/name[@revision]``. Raises ValueError.

    A folder that was found by ``*`` and whose name is taken is named by its whole path: it may appear at any time,
    and must not make the whole list invalid.
    """
    items = [item for part in setting.split(",") if (item := part.strip())]
    if setting and not items:
        raise ValueError("names no model")
    given = [entry for item in items if not item.endswith("/*") for entry in [_parse_item(item)]]
    for entry in given:
        if sum(other.name == entry.name for other in given) > 1:
            raise ValueError(f"names {entry.name!r} twice; rename one with name=folder")
    taken = {entry.name for entry in given}
    entries: dict[str, CatalogEntry] = {}
    for item in items:
        for entry in _found_in(item) if item.endswith("/*") else [_parse_item(item)]:
            if item.endswith("/*") and (entry.name in taken or entry.name in entries):
                entry = CatalogEntry(_readable(entry.source), entry.source)
            entries[entry.name] = entry
    return entries


def is_there(entry: CatalogEntry) -> bool:
    """Return whether this machine has the model: its folder, or a hub from which it is downloaded."""
    return not entry.is_local or (Path(entry.source) / "config.json").is_file()


def catalog_warning(catalog: Mapping[str, CatalogEntry]) -> str | None:
    """Return a warning for the operator about hub ids without a revision, or no model at all; None if all is well."""
    if not catalog:
        return "TRD_MODELS names folders in which there is no model: every job will be refused or wait for one"
    names = [entry.source for entry in catalog.values() if not entry.is_local and entry.revision is None]
    if not names:
        return None
    warning = (
        f"TRD_MODELS: {', '.join(names)} without a revision: whoever owns it may change it under a run that resumes; "
        "write owner/name@revision, with a commit of the hub's"
    )
    folders = [name for name in names if Path(name).is_dir()]
    return f"{warning}; or, for the folder of this name, ./{folders[0]}" if folders else warning


def _found_in(pattern: str) -> list[CatalogEntry]:
    """Return the folders of ``folder/*`` that have a config.json, whatever it is: an odd one is listed and refused."""
    if "=" in pattern.partition("/")[0]:
        raise ValueError(f"{pattern!r} gives one name to all models of a folder; leave the name out")
    try:
        folders = sorted(Path(pattern[:-1]).iterdir())
    except OSError:
        return []
    return [CatalogEntry(_readable(p.name), os.path.realpath(p)) for p in folders if _may_be_model(p)]


def _may_be_model(folder: Path) -> bool:
    is_closed = folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK)
    return is_closed or os.path.lexists(folder / "config.json")


def _readable(name: str) -> str:
    """Return a file's name as text: one that is not UTF-8 could not be sent in an answer."""
    return os.fsencode(name).decode("utf-8", "replace")


def _parse_item(item: str) -> CatalogEntry:
    name, equals, source = item.partition("=")
    if not equals:
        name, source = "", item
    if source.startswith(("/", "./", "../")):
        folder = os.path.realpath(source)
        return CatalogEntry(name or Path(folder).name, folder)
    hub_id, at, revision = source.partition("@")
    if at and not revision:
        raise ValueError(f"{item!r} lacks the revision after the @; name a commit or a tag, or leave the @ out")
    if not _HUB_ID.match(hub_id):
        raise ValueError(f"{item!r} is neither a folder (./x or /x) nor a hub id (owner/name)")
    return CatalogEntry(name or hub_id, hub_id, revision or None)


def read_facts(folder: Path) -> ModelFacts:
    """Return what the folder says; raises `ModelRefusedError` if it is no model that may be loaded."""
    config = read_json_object(folder / "config.json")
    tokenizer = read_json_object(folder / "tokenizer.json")
    for name in ("config.json", "tokenizer_config.json"):
        if os.path.lexists(folder / name) and "auto_map" in read_json_object(folder / name):
            raise ModelRefusedError(f"{name} asks for code of the model's own (auto_map), which is never run")
    if (kernel := hub_kernel(config)) is not None:
        raise ModelRefusedError(f"config.json names {kernel[:100]!r}, code from a hub, which is never run")
    parts = (config, config.get("text_config"))
    if any(isinstance(part, dict) and part.get("quantization_config") for part in parts):
        raise ModelRefusedError(
            "its weights are quantised (quantization_config); name a folder of them in 16 or 32 bits"
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelRefusedError("the folder holds no *.safetensors weights; other formats are not loaded")
    context = config.get("max_position_embeddings")
    try:
        vocabulary, fingerprint = _vocabulary(tokenizer), _tokenizer_fingerprint(tokenizer)
        special = frozenset(entry["content"] for entry in tokenizer.get("added_tokens", []) if entry.get("special"))
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise ModelRefusedError(f"tokenizer.json does not describe a tokenizer: {error!r:.200}") from error
    return ModelFacts(
        context_tokens=context if type(context) is int and 0 < context < 2**63 else None,
        tokenizer_fingerprint=fingerprint,
        vocabulary=vocabulary,
        special_tokens=special,
    )


def hub_kernel(config: Any) -> str | None:
    """Return the hub kernel that a model's configuration, or a part of it, names as its implementation of a layer."""
    if not isinstance(config, dict):
        return None
    for key, value in config.items():
        if str(key).endswith("_implementation"):
            named = value.values() if isinstance(value, dict) else [value]
            found = next((name for name in named if isinstance(name, str) and "/" in name), None)
        else:
            found = hub_kernel(value)
        if found is not None:
            return found
    return None


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a model's folder; raises `ModelRefusedError`."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait forever
            raise ModelRefusedError(f"{path.name} is not a file")
        if found.st_size > MAX_JSON_BYTES:
            raise ModelRefusedError(f"{path.name} has {found.st_size} bytes, over the limit of {MAX_JSON_BYTES}")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelRefusedError(f"{path.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelRefusedError(f"{path.name} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ModelRefusedError(f"{path.name} is not a JSON object")
    return document


def _vocabulary(tokenizer: dict[str, Any]) -> dict[str, int]:
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # Unigram: a list of [token, score]
        vocabulary = {entry[0]: position for position, entry in enumerate(vocabulary)}
    added = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])}
    tokens = {**vocabulary, **added}
    if not all(isinstance(token, str) and type(token_id) is int for token, token_id in tokens.items()):
        raise TypeError("its vocabulary is not a table of tokens and their numbers")
    return tokens


def _tokenizer_fingerprint(tokenizer: dict[str, Any]) -> str:
    """Return a digest of what decides the ids of a text; padding and truncation settings do not."""
    model = tokenizer.get("model", {})
    rules = {name: value for name, value in model.items() if value and name != "merges"}
    if isinstance(model.get("vocab"), dict):  # a list is Unigram's, whose scores decide how text is split
        rules.pop("vocab", None)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []]
    parts: dict[str, Any] = {
        "vocabulary": sorted(_vocabulary(tokenizer).items()),
        "model": {**rules, "merges": merges},
        "added_tokens": sorted(tokenizer.get("added_tokens", []), key=lambda entry: str(entry["content"])),
        "normalizer": tokenizer.get("normalizer"),
        "pre_tokenizer": tokenizer.get("pre_tokenizer"),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def vocabulary_difference(student: ModelFacts, teacher: ModelFacts) -> str | None:
    """Return the first difference of two tokenizers, for a message; None if they agree token for token."""
    if student.tokenizer_fingerprint == teacher.tokenizer_fingerprint:
        return None
    for token, token_id in sorted(student.vocabulary.items(), key=lambda item: item[1]):
        other = teacher.vocabulary.get(token)
        if other != token_id:
            there = "is not in the teacher's vocabulary" if other is None else f"is {other} in the teacher's"
            return f"token {token!r} is {token_id} in the student's vocabulary and {there}"
    extra = len(teacher.vocabulary) - len(student.vocabulary)
    if extra > 0:
        return f"the teacher's vocabulary has {extra} tokens that the student's lacks"
    return "the vocabularies agree, but the rules that split and merge text do not"
