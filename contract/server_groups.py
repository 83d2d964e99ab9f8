"""Equal HTTP servers that the operator describes: pools of them that sample for jobs (``TRD_SAMPLER_POOLS``), and
served teachers (``TRD_TEACHER_ENDPOINTS``).

Users give a name; no request ever contains an address. A description has the name of the environment variable that
holds the servers' key, never the key itself, because settings may be logged and stored.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from contract.strict_model import StrictModel

POOLS_VARIABLE = "TRD_SAMPLER_POOLS"
ENDPOINTS_VARIABLE = "TRD_TEACHER_ENDPOINTS"

ServerName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\w.-]+$")]
_Url = Annotated[str, Field(min_length=1, max_length=2000)]


class ServerGroup(StrictModel):
    """One or several servers that give the same answers."""

    url: _Url
    """Base URL including the API version: ``https://teacher.example/v1``."""
    replicas: Annotated[tuple[_Url, ...], Field(max_length=1000)] = ()
    """Base URLs of further servers that give the same answers: requests are spread over all of them, and go to others
    if one fails."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*(API_KEY|TOKEN|SECRET)$")] | None = None
    """Name of the workers' environment variable that holds the key; logs redact variables of such names."""
    network: Literal["public", "private", "loopback"] = "public"
    """Which addresses are allowed: public ones, also private networks, or the worker's machine only. Only ``loopback``
    allows http; the others require https."""
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """Time limit of one request, including its whole answer."""
    max_tries: Annotated[int, Field(ge=1, le=100)] = 6
    """Most tries of one request."""
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Most concurrent requests of one job, over all servers."""

    @model_validator(mode="after")
    def _addresses_fit_network(self) -> Self:
        schemes = ("http", "https") if self.network == "loopback" else ("https",)
        for parts in map(urlsplit, (self.url, *self.replicas)):
            if parts.scheme not in schemes or not parts.hostname or parts.username or parts.query or parts.fragment:
                raise ValueError(
                    f"url must be {' or '.join(schemes)} if network is {self.network}, with a host, and without a "
                    "user, query or fragment; the same holds for replicas"
                )
        return self


class SamplerPool(ServerGroup):
    """Servers of one model, started by ``python -m trd_engine sample-server``."""

    model: Annotated[str, Field(min_length=1, max_length=500)]
    """The model's name in TRD_MODELS. A job with another student or refining teacher is refused."""
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 3600.0
    """Time limit of one request, including its time in the server's queue."""
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] = 256
    """Most concurrent requests of one job, over all servers."""


class TeacherEndpoint(ServerGroup):
    """One OpenAI-compatible server, or several equal ones."""

    model: Annotated[str, Field(min_length=1, max_length=500)]
    """The model's name on the server."""
    api: Literal["openai", "vllm"] = "openai"
    """``openai``: returns text, and log-probabilities of it if the server supports them. ``vllm``: also returns token
    ids, and log-probabilities of any given text."""
    context_tokens: Annotated[int, Field(ge=2)] | None = None
    """Most tokens of prompt and answer together; if None, the engine asks the server."""
    max_logprobs: Annotated[int, Field(ge=1)] = 20
    """Most tokens per position that the server scores: ``--max-logprobs`` of vLLM, the largest ``top_logprobs`` of
    others."""

    @property
    def serves_logprobs(self) -> bool:
        """Whether it can score any given text."""
        return self.api == "vllm"
