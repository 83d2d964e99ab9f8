"""Checks of every generator before sampling, and completions from the sampled ids."""

from __future__ import annotations

import time
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from trd_engine.runtime.errors import ContextTooLongError
from trd_engine.types import Completion, GenerationProgress, GenerationRequest, ProgressCallback, SamplingSettings


def check_requests(
    requests: Sequence[GenerationRequest], sampling: SamplingSettings, *, max_model_len: int | None
) -> None:
    """Refuse requests that no generator can complete, before anything is sampled.

    Raises `ContextTooLongError` if a prompt and the completion budget exceed `max_model_len` tokens (None:
    no limit is known), and `ValueError` for an empty prompt.
    """
    for position, request in enumerate(requests):
        num_prompt = len(request.prompt_token_ids)
        if num_prompt == 0:
            raise ValueError(f"request {position} has an empty prompt")
        if max_model_len is not None and num_prompt + sampling.max_new_tokens > max_model_len:
            raise ContextTooLongError(
                f"request {position}: its prompt of {num_prompt} tokens and max_new_tokens {sampling.max_new_tokens} "
                f"exceed the model's context of {max_model_len}; lower one of the two"
            )


def make_completion(
    token_ids: Sequence[int],
    stop_token_ids: Sequence[int],
    logprobs: Sequence[float] | None,
    tokenizer: PreTrainedTokenizerBase,
) -> Completion:
    """Return the completion of the ids as sampled, the stop token included if there is one.

    It ends before the first id that the tokenizer does not know, which a head that is padded for speed can produce:
    other models may have no row for it, and it has no text.
    """
    num_known = _num_known(token_ids, tokenizer)
    known = token_ids[:num_known]
    stopped = bool(known) and known[-1] in stop_token_ids
    text = tokenizer.decode(list(known), skip_special_tokens=True)
    assert isinstance(text, str)
    return Completion(
        token_ids=tuple(known),
        text=text,
        finish_reason="unknown_token" if num_known < len(token_ids) else "stop" if stopped else "length",
        logprobs=None if logprobs is None else tuple(logprobs[:num_known]),
    )


def _num_known(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of ids before the first one that the tokenizer does not know."""
    if max(token_ids, default=0) < len(tokenizer):
        return len(token_ids)
    last = max(tokenizer.get_vocab().values())  # beyond the length if the ids have gaps
    return next((i for i, token_id in enumerate(token_ids) if token_id > last), len(token_ids))


REPORT_SECONDS = 0.5
"""The shortest time between two reports of progress."""


class ProgressMeter:
    """Counts the work of one call of `generate`, and calls the callback at most every `REPORT_SECONDS`."""

    def __init__(self, callback: ProgressCallback | None, num_requests: int) -> None:
        self.num_done = 0
        self.num_tokens = 0
        self._callback = callback
        self._num_requests = num_requests
        self._next_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """True if a report is due: counting for it may cost something."""
        return self._callback is not None and time.monotonic() >= self._next_at

    def report_if_due(self) -> None:
        """Report unless the last report is too fresh."""
        if self.is_due:
            self.report()

    def count(self, completions: Sequence[Completion]) -> None:
        """Take these as all completions that are done, and report if a report is due."""
        self.num_done = len(completions)
        self.num_tokens = sum(len(completion.token_ids) for completion in completions)
        self.report_if_due()

    def report(self) -> None:
        """Report now; the callback may raise."""
        if self._callback is not None:
            self._next_at = time.monotonic() + REPORT_SECONDS
            self._callback(GenerationProgress(self.num_done, self._num_requests, self.num_tokens))
