"""Models that a job may name."""

from __future__ import annotations

from typing import Literal

from contract.views import View


class ModelView(View):
    """A model that a job may name as student or teacher."""

    object: Literal["model"] = "model"
    id: str
    """Its name in a spec."""
    is_local: bool
    """False: the worker downloads it from the hub, and the service does not know the fields below."""
    revision: str | None
    """Pinned commit or tag of a hub model."""
    context_tokens: int | None
    """Maximum number of tokens of prompt and completion together."""
    vocabulary_tokens: int | None
    """Entries of the tokenizer, including added ones."""
    tokenizer_fingerprint: str | None
    """Student and teacher must have the same."""
    refusal: str | None
    """Why a job that names the model is refused; null if it is accepted."""
