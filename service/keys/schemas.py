"""Request bodies of ``/keys``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from contract.strict_model import WITHOUT_CONTROLS
from contract.views.keys import KeyScope


class NewKey(BaseModel):
    """What to make."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S"), WITHOUT_CONTROLS]
    """For people; not blank."""
    owner: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\w.@-]+$")] | None = None
    """Who sees what is made with the key; null takes the caller's own."""
    scopes: Annotated[list[KeyScope], Field(min_length=1)] = [KeyScope.SUBMIT]
    """read: look; submit: also make and change; admin: also manage keys."""
