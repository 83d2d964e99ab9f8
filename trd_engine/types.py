"""The small frozen objects that the engine's rooms exchange.

A completion's `token_ids` are the ids that were sampled, including the end-of-turn token if the model produced it.
They are never encoded again from text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Literal

from trd_data.problems import Problem as Problem

if TYPE_CHECKING:  # judging references needs `Verdict`, and no torch
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class GenerationRequest:
    """One completion to sample."""

    prompt_token_ids: tuple[int, ...]
    seed: int
    """Seed of this request alone, so that its sample does not depend on the other requests."""


@dataclass(frozen=True)
class SamplingSettings:
    """Sampling settings of all requests of a call."""

    temperature: float
    top_p: float
    top_k: int
    """-1 or 0 switches it off."""
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    """Any of these ends the completion and is part of it."""


@dataclass(frozen=True)
class Completion:
    """One sampled completion."""

    token_ids: Sequence[int]
    """The sampled ids, including the end-of-turn token if `finish_reason` is stop."""
    text: str
    """Decoded without special tokens; for people and verifiers, never encoded again for the loss."""
    finish_reason: Literal["stop", "length", "unknown_token"]
    """unknown_token: the completion ends before a sampled id that the tokenizer does not know."""
    logprobs: tuple[float, ...] | None = None
    """Log-probability of each token under the sampler's distribution at temperature 1, if requested."""
    prompt_token_ids: tuple[int, ...] | None = None
    """Token ids of a prompt that was sent to a server as text, if the server returns them."""
    scores: TokenScores | None = None
    """Scores that a server returned for the tokens of its answer, if requested."""
    unscored_reason: str | None = None
    """Why no token of `scores` is scored, if none is."""


@dataclass(frozen=True)
class Verdict:
    """A task's verdict on one completion."""

    correct: bool
    detail: str = ""
    """Why: the extracted answer, "no answer", "time-out", the failing test."""
    failure: Literal["error", "time-out"] | None = None
    """How verification failed, if it did; the completion then counts as wrong. Includes programs that exceed their time
    limit, as a correct one may on a busy machine."""


UNVERIFIED = Verdict(False, "not verified yet")
"""Stands for a verdict until a completion is judged. Compared by identity."""


@dataclass(frozen=True)
class Trajectory:
    """A rollout y_o of the student, and its refinement y_r if the mode refines."""

    problem: Problem
    sample: int
    prompt_token_ids: Sequence[int]
    """The student's solving prompt, after which it scores either."""
    rollout: Completion
    rollout_verdict: Verdict = UNVERIFIED
    refine_prompt_token_ids: Sequence[int] | None = None
    """The teacher's refining prompt, after which y_r was sampled and is scored."""
    refined: Completion | None = None
    refined_verdict: Verdict | None = None
    """None also if no refinement was requested; `refined` is then empty."""
    notices: tuple[str, ...] = ()
    """Notices for the user, for example that a prompt was cut."""
    scores: TokenScores | None = None
    """A served teacher's scores of the target's tokens; None with a local teacher, which scores during training."""

    @property
    def target(self) -> Completion:
        """The completion y to train on: the refined trajectory if there is one, else the rollout."""
        return self.refined if self.refined is not None else self.rollout

    @property
    def is_measurable(self) -> bool:
        """Whether any token of the target is scored by the teacher, so that both models can be compared."""
        return bool(self.target.token_ids) and (self.scores is None or bool(self.scores.is_scored.any()))

    @property
    def parts_at_token(self) -> int | None:
        """Number of the first token at which y_o and y_r differ, at most the shorter one's length; None without a y_r
        or if both are equal."""
        if self.refined is None or self.refined.token_ids == self.rollout.token_ids:
            return None
        pairs = zip(self.rollout.token_ids, self.refined.token_ids, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


@dataclass(frozen=True)
class TrainingSequence:
    """One target trajectory between its two prompts, ready to be scored by both models."""

    student_prompt_ids: Sequence[int]
    teacher_prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    """The trained tokens, the same ids after both prompts."""
    position: int
    """Position of the trajectory in its round."""
    weight: float = 1.0
    """Weight of each of its tokens, before the weights that differ between tokens."""
    scores: TokenScores | None = None
    """A served teacher's scores of the trained tokens."""


@dataclass(frozen=True)
class ScoreRow:
    """Scores of one evaluation."""

    step: int
    dataset: str
    k: int
    num_problems: int
    avg_at_k: float
    pass_at_k: float
    avg_low: float | None = None
    """Ends of the 95 % intervals; None in checkpoints of versions that did not keep them."""
    avg_high: float | None = None
    pass_low: float | None = None
    pass_high: float | None = None


@dataclass(frozen=True)
class GenerationProgress:
    """Progress of a call of `Generator.generate`."""

    num_done: int
    """Completed requests."""
    num_requests: int
    num_tokens: int
    """Tokens sampled so far in this call."""


ProgressCallback = Callable[[GenerationProgress], None]
"""Called about every second. It may raise, for example `StopRequested`: the generator then aborts the requests in
progress, stays usable, and lets the exception through."""


CompletionCallback = Callable[[int, Completion], None]
"""Called with the number of a request and its completion as soon as this is whole, in the caller's thread."""


@dataclass(frozen=True)
class TokenScores:
    """The teacher's most likely tokens at each token of a completion, at temperature 1.

    Shapes: T tokens of the completion, K most likely tokens.
    """

    token_ids_TK: Tensor
    logprobs_TK: Tensor
    """Nats, in fp32."""
    target_logprobs_T: Tensor
    """Log-probabilities of the completion's tokens, which need not be among the K; NaN at unscored tokens."""

    @classmethod
    def unscored(cls, target_ids: Sequence[int], top_k: int) -> TokenScores:
        """Make the scores of a completion without a scored token, in the shape of scored ones."""
        import torch

        nothing_T = torch.full((len(target_ids),), torch.nan)
        ids_T1 = torch.tensor(list(target_ids), dtype=torch.int64).unsqueeze(-1)
        return cls(ids_T1.repeat(1, top_k), nothing_T.unsqueeze(-1).repeat(1, top_k), nothing_T)

    @property
    def is_scored(self) -> Tensor:
        """Whether the server returned a distribution at each token, [T]."""
        return ~self.target_logprobs_T.isnan()

    def at(self, places_N: Tensor) -> TokenScores:
        """Return the scores of some of the tokens."""
        return TokenScores(self.token_ids_TK[places_N], self.logprobs_TK[places_N], self.target_logprobs_T[places_N])

    @classmethod
    def concatenated(cls, scores: Sequence[TokenScores], device: torch.device) -> TokenScores:
        """Concatenate the scores of several completions on `device`."""
        import torch

        return cls(
            torch.cat([s.token_ids_TK for s in scores]).to(device),
            torch.cat([s.logprobs_TK for s in scores]).to(device),
            torch.cat([s.target_logprobs_T for s in scores]).to(device),
        )
