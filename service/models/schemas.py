"""Models as the API shows them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from service.models.service import ShelvedModel


class ModelView(BaseModel):
    """A model that a job may name as student or teacher."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["model"] = "model"
    id: str
    """What a spec calls it."""
    is_local: bool
    """False: the worker fetches it from the hub, and what is below is not known here."""
    revision: str | None
    """Pinned commit or tag of a hub model."""
    context_tokens: int | None
    """Most tokens of prompt and completion together."""
    vocabulary_tokens: int | None
    """Entries of the tokenizer, added ones included."""
    tokenizer_fingerprint: str | None
    """Student and teacher must have the same."""
    refusal: str | None
    """Why a job that names it is refused; null where it may be used."""


def model_view(model: ShelvedModel) -> ModelView:
    """A catalogue entry as the API shows it. The operator's paths are not shown."""
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
