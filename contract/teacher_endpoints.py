"""Served teachers, as the operator describes them in ``TRD_TEACHER_ENDPOINTS``.

Users give an endpoint's name; no request ever contains an address. An endpoint has the name of the environment variable
that holds its key, never the key itself, because endpoints may be logged and stored.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from contract.strict_model import StrictModel

ENDPOINTS_VARIABLE = "TRD_TEACHER_ENDPOINTS"

EndpointName = Annotated[str, Field(pattern=r"^[\w.-]{1,100}$")]


class TeacherEndpoint(StrictModel):
    """One OpenAI-compatible server."""

    url: Annotated[str, Field(min_length=1, max_length=2000)]
    """Base URL including the API version: ``https://teacher.example/v1``."""
    model: Annotated[str, Field(min_length=1, max_length=500)]
    """The model's name on the server."""
    api: Literal["openai", "vllm"] = "openai"
    """``openai``: returns text, and log-probabilities of it if the server supports them. ``vllm``: also returns token
    ids, and log-probabilities of any given text."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*(API_KEY|TOKEN|SECRET)$")] | None = None
    """Name of the workers' environment variable that holds the key; logs redact variables of such names."""
    network: Literal["public", "private", "loopback"] = "public"
    """Which addresses are allowed: public ones, also private networks, or the worker's machine only. Only ``loopback``
    allows http; the others require https."""
    context_tokens: Annotated[int, Field(ge=2)] | None = None
    """Most tokens of prompt and answer together; if None, the engine asks the server."""
    max_logprobs: Annotated[int, Field(ge=1)] = 20
    """Most tokens per position that the server scores: ``--max-logprobs`` of vLLM, the largest ``top_logprobs`` of
    others."""
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """Time limit of one request, including its whole answer."""
    max_tries: Annotated[int, Field(ge=1, le=100)] = 6
    """Most tries of one request."""
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Most concurrent requests of one job."""

    @model_validator(mode="after")
    def _address_fits_network(self) -> Self:
        parts = urlsplit(self.url)
        schemes = ("http", "https") if self.network == "loopback" else ("https",)
        if parts.scheme not in schemes or not parts.hostname or parts.username or parts.query or parts.fragment:
            raise ValueError(
                f"url must be {' or '.join(schemes)} if network is {self.network}, with a host, and without a user, "
                "query or fragment"
            )
        return self

    @property
    def serves_logprobs(self) -> bool:
        """Whether it can score any given text."""
        return self.api == "vllm"
