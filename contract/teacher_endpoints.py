"""Served teachers, as the operator describes them in ``TRD_TEACHER_ENDPOINTS``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contract.server_groups import ServerGroup, ServerName

ENDPOINTS_VARIABLE = "TRD_TEACHER_ENDPOINTS"

EndpointName = ServerName


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
