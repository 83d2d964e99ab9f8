"""How a model of the catalogue becomes a view."""

from __future__ import annotations

from contract.views.models import ModelView
from service.models.service import ShelvedModel


def model_view(model: ShelvedModel) -> ModelView:
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
