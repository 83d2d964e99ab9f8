"""``/v1``: one router of all that the `openai` client calls here."""

from __future__ import annotations

from fastapi import APIRouter

from service.openai_compat.files import endpoints as files
from service.openai_compat.fine_tuning import endpoints as fine_tuning
from service.openai_compat.models import endpoints as models

router = APIRouter()
for _part in (files, fine_tuning, models):
    router.include_router(_part.router)
