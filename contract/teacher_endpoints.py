"""Teachers that are served: what the operator says of each, once, in ``TRD_TEACHER_ENDPOINTS``.

A JSON object, name to endpoint. Users give the name; no request ever names an address. An endpoint says which
environment variable holds its key, and never the key: what is written here may be logged and stored.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from contract.strict_model import StrictModel

ENDPOINTS_VARIABLE = "TRD_TEACHER_ENDPOINTS"


class TeacherEndpoint(StrictModel):
    """One OpenAI-compatible server."""

    url: Annotated[str, Field(min_length=1, max_length=2000)]
    """Up to and with the version: ``https://teacher.example/v1``."""
    model: Annotated[str, Field(min_length=1, max_length=500)]
    """As the server names it."""
    api: Literal["openai", "vllm"] = "openai"
    """openai: answers with text, and may tell log-probabilities of it; vllm: tells token ids, and log-probabilities of
    any text."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*(API_KEY|TOKEN|SECRET)$")] | None = None
    """Name of the workers' environment variable that holds the key; logs redact variables of such names."""
    network: Literal["public", "private", "loopback"] = "public"
    """Where its address may lie: on the internet; in a private network too; on the worker's machine alone, where
    http will do. Everywhere else it is https."""
    context_tokens: Annotated[int, Field(ge=2)] | None = None
    """Prompt and answer together, at most; None is left to the engine to ask."""
    max_logprobs: Annotated[int, Field(ge=1)] = 20
    """Tokens a position that the server scores at most: a vLLM's ``--max-logprobs``, another's largest
    ``top_logprobs``."""
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """For one answer, to its last byte."""
    max_tries: Annotated[int, Field(ge=1, le=100)] = 6
    """Of one request."""
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Requests of one job at a time."""

    @model_validator(mode="after")
    def _address_fits_network(self) -> Self:
        parts = urlsplit(self.url)
        schemes = ("http", "https") if self.network == "loopback" else ("https",)
        if parts.scheme not in schemes or not parts.hostname or parts.username or parts.query or parts.fragment:
            raise ValueError(
                f"url must be {' or '.join(schemes)} where network is {self.network}, with a host, and without a "
                "user, query or fragment"
            )
        return self

    @property
    def serves_logprobs(self) -> bool:
        """True where it can score any text."""
        return self.api == "vllm"


_ENDPOINTS = TypeAdapter(dict[Annotated[str, Field(pattern=r"^[\w.-]{1,100}$")], TeacherEndpoint])


def parse_endpoints(setting: str) -> dict[str, TeacherEndpoint]:
    """`TRD_TEACHER_ENDPOINTS` by name. Raises ValueError, which names the field and never shows its value."""
    if not setting.strip():
        return {}
    try:
        document = json.loads(setting)
    except ValueError:
        raise ValueError(f"{ENDPOINTS_VARIABLE}: not JSON; write an object of name to endpoint") from None
    try:
        return _ENDPOINTS.validate_python(document)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False, include_url=False)
        ]
        raise ValueError(f"{ENDPOINTS_VARIABLE}: {'; '.join(problems)}") from None
