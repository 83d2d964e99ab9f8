"""Answers that an endpoint writes out itself.

What is a model of ours already needs no validation on its way out. The framework would validate it, and for
that give an endpoint that is a plain function another thread: for a call that takes a millisecond, a good part
of it. The route's ``response_model`` still describes the answer in the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel
from starlette.responses import Response


def json_answer(view: BaseModel, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`view` as JSON."""
    return Response(view.model_dump_json(), status, headers, media_type="application/json")
