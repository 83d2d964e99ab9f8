"""The operator's allow-list of models, with the facts in each model's folder."""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from contract.model_catalog import (
    CatalogEntry,
    ModelFacts,
    ModelRefusedError,
    catalog_warning,
    parse_catalog,
    read_facts,
    read_json_object,
)
from contract.views.models import ModelView
from trd_data.errors import PromptError
from trd_data.stop_ids import StopIds, find_stop_ids
from trd_estimate.shape import ModelShape, shape_of

logger = logging.getLogger(__name__)

CATALOG_SECONDS = 2.0
"""How long the setting and the state of the models' files are cached. Every submission looks several models up, and
without the cache each look takes a dozen system calls."""
_FACT_FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    "chat_template.jinja",
)


@dataclass(frozen=True)
class CatalogModel:
    """One model: its facts, or why it may not be used, or neither if it is on a hub."""

    entry: CatalogEntry
    facts: ModelFacts | None
    refusal: str | None

    @cached_property
    def stop_ids(self) -> StopIds | None:
        """The tokens that end a completion; None if the folder's files do not say, or are not here."""
        if self.facts is None:
            return None
        try:
            return find_stop_ids(Path(self.entry.source), self.facts.vocabulary, self.facts.special_tokens)
        except PromptError:
            return None

    @cached_property
    def shape(self) -> ModelShape | None:
        """The sizes of its layers; None if its configuration does not say, or is not here."""
        return read_shape(Path(self.entry.source)) if self.entry.is_local else None


def read_shape(folder: Path) -> ModelShape | None:
    """Return the shape of the model in `folder`; None if its configuration lacks it."""
    try:
        return shape_of(read_json_object(folder / "config.json"))
    except ModelRefusedError:
        return None


def model_view(model: CatalogModel) -> ModelView:
    """Return the view of a catalogue entry, which does not show the operator's paths."""
    facts = model.facts
    return ModelView(
        id=model.entry.name,
        is_local=model.entry.is_local,
        revision=model.entry.revision,
        context_tokens=facts.context_tokens if facts else None,
        vocabulary_tokens=len(facts.vocabulary) if facts else None,
        tokenizer_fingerprint=facts.tokenizer_fingerprint if facts else None,
        refusal=model.refusal,
    )


class ModelCatalog:
    """Looks models up by name. Folders are read again within `CATALOG_SECONDS` of a change of their files."""

    def __init__(self, setting: str) -> None:
        self._setting = setting
        self._catalog = parse_catalog(setting)  # a bad setting stops the start, not a request
        if warning := catalog_warning(self._catalog):
            logger.warning(warning)
        self._parsed_at = time.monotonic()
        self._facts: dict[tuple[object, ...], CatalogModel] = {}
        self._models: dict[CatalogEntry, tuple[float, CatalogModel]] = {}

    def _entries(self) -> dict[str, CatalogEntry]:
        """Return the catalogue; new folders are found after `CATALOG_SECONDS`."""
        if time.monotonic() - self._parsed_at > CATALOG_SECONDS:
            self._catalog = parse_catalog(self._setting)
            self._parsed_at = time.monotonic()
        return self._catalog

    def names(self) -> list[str]:
        """Return every name that a spec may use now."""
        return list(self._entries())

    def all(self) -> list[CatalogModel]:
        """Return every model, in the order of the setting."""
        return [self._model_of(entry) for entry in self._entries().values()]

    def find(self, name: str) -> CatalogModel | None:
        """Return the model of that name, or with that folder or hub id as its source."""
        catalog = self._entries()
        entry = catalog.get(name) or next((entry for entry in catalog.values() if entry.source == name), None)
        return self._model_of(entry) if entry is not None else None

    def _model_of(self, entry: CatalogEntry) -> CatalogModel:
        if not entry.is_local:
            return CatalogModel(entry, None, None)
        looked_at, model = self._models.get(entry, (-math.inf, None))
        if model is None or time.monotonic() - looked_at > CATALOG_SECONDS:
            model = self._look(entry)
            self._models[entry] = (time.monotonic(), model)
        return model

    def _look(self, entry: CatalogEntry) -> CatalogModel:
        key = (entry, *(_changed_at(f"{entry.source}/{name}") for name in _FACT_FILES))
        if key not in self._facts:
            self._facts = {k: v for k, v in self._facts.items() if k[0] != entry}
            self._facts[key] = _read(entry, Path(entry.source))
        return self._facts[key]


def _changed_at(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116 - for every job: a Path costs more than the look
    except OSError:
        return None


def _read(entry: CatalogEntry, folder: Path) -> CatalogModel:
    try:
        return CatalogModel(entry, read_facts(folder), None)
    except ModelRefusedError as error:
        return CatalogModel(entry, None, str(error))
    except Exception:  # one odd folder must not hide the other models
        logger.exception("the folder of model %s cannot be read", entry.name)
        return CatalogModel(entry, None, "its folder cannot be read; the service's log says why")
