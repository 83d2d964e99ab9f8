"""A teacher behind an OpenAI-compatible server: it refines by text, and may score tokens.

Not a `Generator`: the server applies its own chat template and answers with text. What it says becomes token ids here,
by the student's tokenizer, and nowhere else is a completion ever encoded from text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trd_engine.generation.completions import ProgressMeter
from trd_engine.generation.endpoint_client import Endpoint, EndpointClient, MalformedAnswerError
from trd_engine.generation.protocol import ProgressCallback
from trd_engine.types import Completion, SamplingSettings


@dataclass(frozen=True)
class TextRequest:
    """One answer to ask for."""

    message: str
    """The user's turn of a chat, without any template."""
    seed: int
    """Sent along; a server need not heed it."""


@dataclass(frozen=True)
class TopKScores:
    """The teacher's best tokens at each of T completion tokens, most probable first."""

    token_ids_TK: torch.Tensor
    logprobs_TK: torch.Tensor
    """Under the teacher's untempered distribution over its whole vocabulary."""


class EndpointTeacher:
    """Refines, and where the server is a vLLM scores, through one endpoint."""

    def __init__(self, endpoint: Endpoint, tokenizer: PreTrainedTokenizerBase, *, end_of_turn_id: int) -> None:
        """`tokenizer` is the student's, and `end_of_turn_id` what its completions end with."""
        self._endpoint = endpoint
        self._client = EndpointClient(endpoint)
        self._tokenizer = tokenizer
        self._end_of_turn_id = end_of_turn_id

    def complete(
        self,
        requests: Sequence[TextRequest],
        sampling: SamplingSettings,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[Completion]:
        """One completion a request, in their order; `on_progress` may raise, as for `Generator.generate`.

        A text that is longer than `max_new_tokens` in the student's tokens is cut there. Raises
        `TeacherUnreachableError` and `TeacherRefusedError`.
        """
        meter = ProgressMeter(on_progress, len(requests))

        def report(answers: Sequence[Completion]) -> None:
            meter.num_done = len(answers)
            meter.num_tokens = sum(len(answer.token_ids) for answer in answers)
            meter.report_if_due()

        bodies = [self._chat_body(request, sampling) for request in requests]
        completions = self._client.post_all(
            "chat/completions", bodies, lambda document: self._completion(document, sampling), report
        )
        meter.report()
        return completions

    def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], top_k: int) -> list[TopKScores]:
        """The teacher's `top_k` best tokens at every completion token of each (prompt ids, completion ids).

        The ids must be the teacher's own: its tokenizer and the student's agree token for token. Only for a vLLM
        server, whose `max_logprobs` bounds `top_k`. Raises `TeacherUnreachableError` and `TeacherRefusedError`.
        """
        if not self._endpoint.is_vllm:
            raise ValueError(f"teacher endpoint {self._endpoint.name} is not said to be a vLLM server: it cannot score")
        bodies = [self._score_body([*prompt, *completion], top_k) for prompt, completion in sequences]
        entries = self._client.post_all("completions", bodies, _prompt_logprobs, lambda _: None)
        return [
            _top_k_scores(positions[len(prompt) :], top_k)
            for positions, (prompt, _) in zip(entries, sequences, strict=True)
        ]

    def _chat_body(self, request: TextRequest, sampling: SamplingSettings) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._endpoint.model,
            "messages": [{"role": "user", "content": request.message}],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": request.seed,
        }
        if self._endpoint.is_vllm:
            body["top_k"] = max(sampling.top_k, 0)
        return body

    def _score_body(self, token_ids: list[int], top_k: int) -> dict[str, Any]:
        return {
            "model": self._endpoint.model,
            "prompt": token_ids,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": top_k,
        }

    def _completion(self, document: Any, sampling: SamplingSettings) -> Completion:
        choice = _only_choice(document)
        message = choice.get("message")
        text = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(text, str):
            raise MalformedAnswerError("a choice without a message of text")
        token_ids = _encode(self._tokenizer, text)
        if choice.get("finish_reason") == "stop":
            token_ids.append(self._end_of_turn_id)
        fits = len(token_ids) <= sampling.max_new_tokens
        token_ids = token_ids[: sampling.max_new_tokens]
        is_whole = fits and choice.get("finish_reason") == "stop"
        return Completion(tuple(token_ids), text, "stop" if is_whole else "length")


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of foreign text, in which the spelling of a special token is mere text."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def _only_choice(document: Any) -> Mapping[str, Any]:
    choices = document.get("choices") if isinstance(document, Mapping) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise MalformedAnswerError("not one choice")
    choice: Mapping[str, Any] = choices[0]
    return choice


def _prompt_logprobs(document: Any) -> list[Mapping[str, Any] | None]:
    positions = _only_choice(document).get("prompt_logprobs")
    if not isinstance(positions, list):
        raise MalformedAnswerError("no prompt_logprobs: is the server a vLLM?")
    return positions


def _top_k_scores(positions: Sequence[Mapping[str, Any] | None], top_k: int) -> TopKScores:
    """Positions map token ids to log-probability and rank; beside the best they hold the token that was there."""
    rows = []
    for position in positions:
        assert position is not None  # only a prompt's first token has no prediction
        best = sorted((entry["rank"], int(token_id), entry["logprob"]) for token_id, entry in position.items())
        rows.append(best[:top_k])
    return TopKScores(
        torch.tensor([[token_id for _, token_id, _ in row] for row in rows]),
        torch.tensor([[logprob for _, _, logprob in row] for row in rows]),
    )
