"""The small frozen objects that the engine's parts hand to one another.

Token ids are the truth: a completion's `token_ids` are the very ids that were sampled, the
end-of-turn token included where the model produced it, and they are never made from text again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """One row of the data."""

    id: str
    """Stable within the data: the row's own id, else its number."""
    problem: str
    answer: str
    """What the task's verifier compares with; for code, empty: the tests are in `extra`."""
    solution: str | None = None
    """The reference solution y*, which OPSD's teacher sees."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What a task needs beyond that, such as tests, choices or starter code."""
    benchmark: str | None = None
    """The data set that the row says it is of, where a file holds several; scores are told for each."""


@dataclass(frozen=True)
class GenerationRequest:
    """One completion to sample."""

    prompt_token_ids: tuple[int, ...]
    seed: int
    """Of this request alone, so that a request's sample does not hang on its neighbours."""


@dataclass(frozen=True)
class SamplingSettings:
    """How to sample; the same for all requests of a call."""

    temperature: float
    top_p: float
    top_k: int
    """-1 or 0: off."""
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    """Any of these ends the completion, and is part of it."""


@dataclass(frozen=True)
class Completion:
    """What a model answered."""

    token_ids: tuple[int, ...]
    """As sampled, with the end-of-turn token when `finish_reason` is stop."""
    text: str
    """Decoded without special tokens; for people and verifiers, never encoded again for the loss."""
    finish_reason: Literal["stop", "length", "unknown_token"]
    """unknown_token: it ends before a sampled id that the tokenizer does not know."""
    logprobs: tuple[float, ...] | None = None
    """Of each sampled token under the sampler's own, untempered distribution, where asked for."""
    prompt_token_ids: tuple[int, ...] | None = None
    """What a server made of a prompt that it was given as text, where it says so."""
    scores: TokenScores | None = None
    """What a server told of its own answer's tokens, where asked for."""
    untold_reason: str | None = None
    """Why `scores` tell nothing, where they do not."""


@dataclass(frozen=True)
class Verdict:
    """What a task's verifier says of one completion."""

    correct: bool
    detail: str = ""
    """Why: the extracted answer, "no answer", "time-out", the failing test."""
    failure: Literal["error", "time-out"] | None = None
    """How judging ended where it came to no end of its own; the completion then counts as wrong. A program that runs
    out of time is one too: on a busy machine a right one may."""


@dataclass(frozen=True)
class Trajectory:
    """A rollout y_o of the student, and its refinement y_r where the mode refines."""

    problem: Problem
    sample: int
    prompt_token_ids: tuple[int, ...]
    """The student's solving prompt, in which both are scored."""
    rollout: Completion
    rollout_verdict: Verdict
    refine_prompt_token_ids: tuple[int, ...] | None = None
    """The teacher's refining prompt, in which y_r was sampled and is scored."""
    refined: Completion | None = None
    refined_verdict: Verdict | None = None
    """None too where nobody was asked to refine it: `refined` is then empty."""
    notices: tuple[str, ...] = ()
    """What was cut, and where."""
    scores: TokenScores | None = None
    """A served teacher's, of the target's tokens. A local teacher scores while it trains, and has none."""

    @property
    def target(self) -> Completion:
        """The completion y to train on: the refined trajectory, or the rollout where there is none."""
        return self.refined if self.refined is not None else self.rollout

    @property
    def is_measurable(self) -> bool:
        """True where the teacher tells of a token of the target, at which student and teacher can be compared."""
        return bool(self.target.token_ids) and (self.scores is None or bool(self.scores.is_told.any()))

    @property
    def parts_at_token(self) -> int | None:
        """The first token at which y_o and y_r differ, which may be the shorter one's length; None without a y_r and
        where both are the same."""
        if self.refined is None or self.refined.token_ids == self.rollout.token_ids:
            return None
        pairs = zip(self.rollout.token_ids, self.refined.token_ids, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


@dataclass(frozen=True)
class TrainingSequence:
    """One target trajectory between its two prompts, ready to be scored by both models."""

    student_prompt_ids: tuple[int, ...]
    teacher_prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    """The trained tokens, the same ids after either prompt."""
    position: int
    """Of the trajectory within its round."""
    weight: float = 1.0
    """Of each of its tokens, before any weight that differs within it."""
    scores: TokenScores | None = None
    """Of the trained tokens, where a served teacher gave them."""


@dataclass(frozen=True)
class ScoreRow:
    """One evaluation, as the card shows it."""

    step: int
    dataset: str
    k: int
    num_problems: int
    avg_at_k: float
    pass_at_k: float


@dataclass(frozen=True)
class GenerationProgress:
    """How far a call of `Generator.generate` is."""

    num_done: int
    """Completed requests."""
    num_requests: int
    num_tokens: int
    """Sampled so far in this call."""


ProgressCallback = Callable[[GenerationProgress], None]
"""Called at least every second or so. It may raise, for example `StopRequested`: the generator then
aborts what is under way, stays usable, and lets the exception through."""


@dataclass(frozen=True)
class TokenScores:
    """The teacher's best tokens at each of a completion's, under its untempered distribution."""

    token_ids_TK: Tensor
    logprobs_TK: Tensor
    """Nats, in fp32."""
    target_logprobs_T: Tensor
    """Of the completion's own tokens, which need not be among the best; NaN where the server told nothing."""

    @classmethod
    def untold(cls, target_ids: Sequence[int], top_k: int) -> TokenScores:
        """Of a completion of whose tokens nothing was told; in the shape of those of which something was."""
        nothing_T = torch.full((len(target_ids),), torch.nan)
        ids_T1 = torch.tensor(list(target_ids), dtype=torch.int64).unsqueeze(-1)
        return cls(ids_T1.repeat(1, top_k), nothing_T.unsqueeze(-1).repeat(1, top_k), nothing_T)

    @property
    def is_told(self) -> Tensor:
        """[T], where the server told a distribution."""
        return ~self.target_logprobs_T.isnan()

    def at(self, places_N: Tensor) -> TokenScores:
        """Of some of the tokens."""
        return TokenScores(self.token_ids_TK[places_N], self.logprobs_TK[places_N], self.target_logprobs_T[places_N])

    @classmethod
    def concatenated(cls, scores: Sequence[TokenScores], device: torch.device) -> TokenScores:
        """Of several completions one after another, on `device`."""
        return cls(
            torch.cat([s.token_ids_TK for s in scores]).to(device),
            torch.cat([s.logprobs_TK for s in scores]).to(device),
            torch.cat([s.target_logprobs_T for s in scores]).to(device),
        )
