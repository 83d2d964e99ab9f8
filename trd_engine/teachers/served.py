"""A served teacher of a run: the checks before anything is sampled, and its scores.

A vLLM server scores the round's targets once, right after they are collected. Another server may return
log-probabilities of its own answers: if the answer is the target and its prompt the loss's context, these are the
scores. Two requests at the start find out, and the run then relies on it. Scores are stored with the round: training
steps send no requests, and a resumed run trains on the same scores. If a server returns none, the loss is the
cross-entropy on the refined trajectory, and a notice says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trd_data.prompts import PromptBuilder
from trd_engine.config import LossConfig, RefineConfig, SamplingConfig, ServedTeacherConfig
from trd_engine.models.tokenizer_agreement import SAMPLE_TEXTS, require_same_ids
from trd_engine.runtime.distributed import ALONE, World
from trd_engine.runtime.errors import ContextTooLongError, TeacherRefusedError, TeacherUnreachableError
from trd_engine.runtime.events import Reporter
from trd_engine.teachers.endpoint.api import EndpointTeacher
from trd_engine.types import SamplingSettings, TokenScores, Trajectory

UNSCORED_NOTICE = "cross-entropy instead of the teacher's log-probabilities: "
"""Beginning of a trajectory's notice that it is unscored; the reason follows."""
PROBE = "What is 12 + 7?"
"""Question of the first request, which asks for one token."""


class ServedTeacher:
    """The teacher of a run behind an endpoint."""

    def __init__(
        self,
        client: EndpointTeacher,
        served: ServedTeacherConfig,
        loss: LossConfig,
        sampling: SamplingConfig,
        refine: RefineConfig | None,
        *,
        world: World = ALONE,
        was_scored: bool | None = None,
    ) -> None:
        """Check the server behind `client`. `refine`: None if nothing is refined. `was_scored` tells whether a resumed
        run began with the teacher's log-probabilities; None: a new run.

        Raises `TeacherRefusedError`, `TeacherUnreachableError`, `TokenizerMismatchError`, `ContextTooLongError` or
        `SpecError` if the run could not finish with this server.
        """
        self.client = client
        self._served = served
        self._spec_loss = loss
        self._sampling = sampling
        self._refine = refine
        scores = loss.divergence != "cross_entropy"
        self.top_k = min(loss.teacher_top_k, len(client.tokenizer)) if scores else None
        """Number of tokens that it scores at each position; None: it does not score."""
        self._unscored_reason = "" if scores else "loss.divergence is cross_entropy"
        if self._served.api == "vllm":
            self._check_server()
        elif self.top_k is not None:
            self._request_answer_scores(self.top_k, world, was_scored)

    @property
    def loss(self) -> LossConfig:
        """The spec's loss if the teacher scores, else the cross-entropy, which has no schedule and no temperature."""
        loss = self._spec_loss
        if self.top_k is not None or loss.divergence == "cross_entropy":
            return loss
        changes = {"divergence": "cross_entropy", "support": "full", "temperature": 1.0, "reverse_after": None}
        return loss.model_copy(update=changes)

    def report(self, reporter: Reporter, *, is_diagnosed: bool) -> None:
        """Report what the loss is computed from, what could not be checked, and that a diagnosis is impossible."""
        name = self._served.endpoint
        if self.top_k is None:
            is_chosen = self._spec_loss.divergence == "cross_entropy"
            reporter.notice(
                "info" if is_chosen else "warn",
                "teacher_without_logprobs",
                "the loss is the cross-entropy on the refined trajectory, since teacher endpoint "
                f"{name} gives text only: {self._unscored_reason}; metrics are named cross_entropy instead of a KL",
                remedy="set loss.divergence to cross_entropy if that is what you want, or name another teacher",
            )
        else:
            reporter.notice(
                "info",
                "teacher_scores",
                f"teacher endpoint {name} gives the log-probabilities of {self.top_k} tokens per position: the loss is "
                f"{self._spec_loss.divergence} on these tokens",
                teacher_top_k=self.top_k,
            )
        if self._served.api != "vllm":
            reporter.notice(
                "info",
                "teacher_tokenizer_unknown",
                f"teacher endpoint {name} does not return token ids: its text is encoded by the student's tokenizer",
            )
        if is_diagnosed:
            reporter.notice(
                "info",
                "diagnosis_off",
                f"rounds are not diagnosed: teacher endpoint {name} does not return whole distributions; accuracies "
                "and lengths are reported",
            )

    def score(self, share: Sequence[Trajectory], prompts: PromptBuilder, reporter: Reporter) -> list[Trajectory]:
        """Add a vLLM server's scores of the targets of this process's share. Collective.

        The teacher reads each target after the very tokens that its server makes of the prompt. Other servers have
        scored their answers already, or do not score.
        """
        if self.top_k is None or self._served.api != "vllm":
            return list(share)
        top_k = self.top_k

        def score_share() -> list[TokenScores]:
            contexts = self._contexts(share, prompts)
            sequences = [(context, t.target.token_ids) for context, t in zip(contexts, share, strict=True)]
            return self.client.score(sequences, top_k, while_waiting=reporter.stop_if_asked)

        scores = reporter.run_independently(score_share)
        return [replace(trajectory, scores=one) for trajectory, one in zip(share, scores, strict=True)]

    def report_unscored(self, trajectories: Sequence[Trajectory], reporter: Reporter) -> None:
        """Report which of the round's tokens the server gave no usable log-probabilities of."""
        if self.top_k is None or self._served.api == "vllm":
            return
        reasons = [
            n.removeprefix(UNSCORED_NOTICE) for t in trajectories for n in t.notices if n.startswith(UNSCORED_NOTICE)
        ]
        unscored = [~t.scores.is_scored for t in trajectories if t.scores is not None]
        num_tokens, num_unscored = sum(map(len, unscored)), sum(int(one_T.sum()) for one_T in unscored)
        if num_unscored:
            first = f"; the first: {reasons[0]}" if reasons else ""
            reporter.notice(
                "warn" if reasons else "info",
                "teacher_scores_partial",
                f"the loss is the cross-entropy at {num_unscored} of {num_tokens} tokens: teacher endpoint "
                f"{self._served.endpoint} returned no log-probabilities for them (as at an end of turn), or for tokens "
                "that do not map one to one to the student's. Refinements without any scored token: "
                f"{len(reasons)} of {len(trajectories)}{first}",
                num_unscored_tokens=num_unscored,
                num_tokens=num_tokens,
                num_unscored_refinements=len(reasons),
            )

    def _request_answer_scores(self, top_k: int, world: World, was_scored: bool | None) -> None:
        """Request log-probabilities with every answer, if those of the server can be used for the loss."""
        if was_scored is None:
            self._unscored_reason = self._check_answer_scores(top_k)
        elif not was_scored:
            self._unscored_reason = "the run began without its log-probabilities"
        if world.any(bool(self._unscored_reason)):
            self.top_k = None
            self._unscored_reason = self._unscored_reason or "another process of the run received none"
        else:
            self.client.score_answers(top_k)

    def _check_answer_scores(self, top_k: int) -> str:
        """Return why the log-probabilities of its answers cannot be used for the loss; empty if they can.

        Requests those of a first token with the refinements' sampling settings and at temperature 1: they must agree.
        """
        sampling = self._sampling
        as_sampled = SamplingSettings(sampling.temperature, sampling.top_p, sampling.top_k, 1, ())
        plain = replace(as_sampled, temperature=1.0, top_p=1.0)
        try:
            first, second = (self.client.first_logprobs(PROBE, one, top_k) for one in (as_sampled, plain))
        except (TeacherRefusedError, TeacherUnreachableError) as refusal:  # some servers answer 501 to unknown fields
            self.client.first_logprobs(PROBE, as_sampled, None)  # raises if log-probabilities are not why it refuses
            return (
                f"it refuses to return the log-probabilities of loss.teacher_top_k = {top_k} tokens per position, and "
                f"may accept a lower number. The server's message: {refusal}"
            )
        if not first or not second:
            return "its answers have no log-probabilities"
        if len(first) < top_k or len(second) < top_k:
            num_returned = min(len(first), len(second))
            return f"it returns {num_returned} tokens per position, fewer than loss.teacher_top_k = {top_k}"
        sampled, untempered = dict(first), dict(second)
        shared = sampled.keys() & untempered.keys()
        if any(abs(sampled[token] - untempered[token]) > _tolerance(untempered[token]) for token in shared):
            return "its log-probabilities depend on the temperature and top-p of sampling"
        return ""

    def _contexts(self, trajectories: Sequence[Trajectory], prompts: PromptBuilder) -> list[Sequence[int]]:
        if self._spec_loss.teacher_context == "refine":
            return [t.refine_prompt_token_ids or () for t in trajectories]
        messages = {t.problem.id: prompts.solve_message(t.problem) for t in trajectories}
        tokenized = self.client.tokenize(list(messages.values()), as_chat=True)
        by_problem = {problem: found.token_ids for problem, found in zip(messages, tokenized, strict=True)}
        return [by_problem[t.problem.id] for t in trajectories]

    def _check_server(self) -> None:
        """Send small requests that find a wrong key or model, another tokenizer, a context that is too short, or a
        server that scores fewer tokens per position than the loss needs."""
        found = self.client.tokenize(SAMPLE_TEXTS, as_chat=False)
        for text, theirs in zip(SAMPLE_TEXTS, found, strict=True):  # its completions are ids, scored or not
            ours = self.client.tokenizer(text, add_special_tokens=False)["input_ids"]
            require_same_ids(text, ours, theirs.token_ids, teacher=f"teacher endpoint {self._served.endpoint}")
        section, limits = ("refine", self._refine) if self._refine is not None else ("sampling", self._sampling)
        prompt, new = limits.max_prompt_tokens, limits.max_new_tokens
        needed = prompt + new + (self.top_k is not None)  # to score, the server must generate one token
        limit = found[0].max_model_len
        if needed > limit:
            raise ContextTooLongError(
                f"{section}.max_prompt_tokens + {section}.max_new_tokens = {prompt} + {new} needs a context of "
                f"{needed} tokens, but teacher endpoint {self._served.endpoint} takes {limit}; lower one of them"
            )
        if self.top_k is None:
            return
        ids = found[0].token_ids
        one_token = [(ids[:1], ids[1:2])]
        try:
            self.client.score(one_token, self.top_k)
        except TeacherRefusedError as refusal:
            self.client.score(one_token, 1)  # raises if the number is not why it refuses
            raise TeacherRefusedError(
                f"loss.teacher_top_k = {self.top_k}, but teacher endpoint {self._served.endpoint} returns fewer tokens "
                "per position; lower loss.teacher_top_k, or have the operator raise the server's --max-logprobs "
                f"(default 20) and the endpoint's max_logprobs. The server's message: {refusal}"
            ) from refusal


def _tolerance(logprob: float) -> float:
    """Return by how many nats two answers to one request may differ: half-precision kernels depend on the batch."""
    return 0.1 + 0.05 * abs(logprob)
