"""A served teacher in the loop: its place in the spec, what is checked before anything is sampled, its scores.

A vLLM scores the round's targets once, right after they are collected. Any other server may tell log-probabilities of
its own answers: asked at the start, it is held to it, and where the answer is the target and its prompt the loss's
context these are the same numbers. Scores are kept with the round: a step asks no server, and a resumed run trains on
what it began with. Where nothing is told, the loss is the cross-entropy on the refined trajectory, and the run says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from trd_engine.config import LossConfig, RunConfig, ServedTeacherConfig
from trd_engine.models.tokenizer_agreement import SAMPLE_TEXTS, require_same_ids
from trd_engine.runtime.distributed import ALONE, World
from trd_engine.runtime.errors import ContextTooLongError, SpecError, TeacherRefusedError, TeacherUnreachableError
from trd_engine.runtime.events import Reporter
from trd_engine.tasks.prompt_builder import PromptBuilder
from trd_engine.teachers.endpoint.api import EndpointTeacher
from trd_engine.teachers.endpoint.client import Endpoint
from trd_engine.teachers.token_scores import UNSCORED_NOTICE, with_scores
from trd_engine.types import SamplingSettings, TokenScores, Trajectory

PROBE = "What is 12 + 7?"
"""Asked at the start; one token of the answer is waited for."""


class ServedTeacher:
    """One run's teacher behind an endpoint."""

    def __init__(
        self,
        config: RunConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        end_of_turn_ids: Sequence[int],
        world: World = ALONE,
        was_scored: bool | None = None,
    ) -> None:
        """`tokenizer` and `end_of_turn_ids` are the student's. Of several processes each asks for its own share.
        `was_scored` says of a resumed run whether its teacher told log-probabilities; it goes on so.

        Raises `TeacherRefusedError`, `TeacherUnreachableError`, `TokenizerMismatchError`, `ContextTooLongError` and
        `SpecError`: a run that cannot go through ends here.
        """
        assert isinstance(config.teacher, ServedTeacherConfig)
        self._served = config.teacher
        self._config = config
        self.client = EndpointTeacher(
            _endpoint(self._served, world),
            tokenizer,
            end_of_turn_ids=end_of_turn_ids,
            thinking=config.sampling.thinking,
        )
        scores = config.loss.divergence != "cross_entropy"
        self.top_k = min(config.loss.teacher_top_k, len(tokenizer)) if scores else None
        """Tokens that it scores at each position; None: it does not score."""
        self._why_not = "" if scores else "loss.divergence says so"
        if self._served.api == "vllm":
            self._check_server(tokenizer)
        elif self.top_k is not None:
            self._score_own_answers(self.top_k, world, was_scored)

    @property
    def loss(self) -> LossConfig:
        """The spec's where the teacher scores, else the cross-entropy, which has no schedule and no temperature."""
        loss = self._config.loss
        if self.top_k is not None or loss.divergence == "cross_entropy":
            return loss
        changes = {"divergence": "cross_entropy", "support": "full", "temperature": 1.0, "reverse_after": None}
        return loss.model_copy(update=changes)

    def report(self, reporter: Reporter) -> None:
        """Say what the loss is made of, and what could not be checked."""
        name = self._served.endpoint
        if self.top_k is None:
            reporter.notice(
                "warn",
                "teacher_without_logprobs",
                "the loss is the cross-entropy on the refined trajectory, taught by the text of teacher endpoint "
                f"{name} alone: {self._why_not}; metrics speak of cross-entropy and not of a KL",
            )
        else:
            loss = self._config.loss
            reporter.notice(
                "info",
                "teacher_scores",
                f"teacher endpoint {name} gives the log-probabilities of {self.top_k} tokens a position: the loss is "
                f"{loss.divergence} on these",
                teacher_top_k=self.top_k,
            )
        if self._served.api != "vllm":
            reporter.notice(
                "info",
                "teacher_tokenizer_unknown",
                f"teacher endpoint {name} does not tell its tokens: its text is tokenised by the student's tokenizer",
            )
        if self._config.diagnosis.num_trajectories:
            reporter.notice(
                "info",
                "diagnosis_off",
                f"rounds are not diagnosed: teacher endpoint {name} does not give whole distributions; "
                "accuracies and lengths are reported all the same",
            )

    def score(self, trajectories: Sequence[Trajectory], prompts: PromptBuilder, reporter: Reporter) -> list[Trajectory]:
        """The trajectories with the teacher's scores of their targets; as they are where it does not score. Collective.

        The teacher reads each target after the very tokens that its server makes of the prompt.
        """
        if self.top_k is None:
            return list(trajectories)
        if self._served.api != "vllm":
            self._report_unscored_tokens(trajectories, reporter)
            return list(trajectories)
        world, top_k = reporter.world, self.top_k
        mine = [trajectories[i] for i in world.share(len(trajectories))]

        def score_mine() -> list[TokenScores]:
            contexts = self._contexts(mine, prompts)
            sequences = [(context, t.target.token_ids) for context, t in zip(contexts, mine, strict=True)]
            return self.client.score(sequences, top_k, while_waiting=reporter.stop_if_asked)

        return with_scores(trajectories, world.gather(reporter.run_independently(score_mine)))

    def _report_unscored_tokens(self, trajectories: Sequence[Trajectory], reporter: Reporter) -> None:
        """Answers whose tokens are not the student's one for one, and single tokens of the others."""
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

    def _score_own_answers(self, top_k: int, world: World, was_scored: bool | None) -> None:
        """Ask for log-probabilities with every answer, where the server tells such as the loss is to have."""
        if was_scored is None:
            self._why_not = self._find_obstacle(top_k)
        elif not was_scored:
            self._why_not = "the run began without its log-probabilities"
        if world.any(bool(self._why_not)):
            self.top_k = None
            self._why_not = self._why_not or "another process of the run was told none"
        else:
            self.client.score_answers(top_k)

    def _find_obstacle(self, top_k: int) -> str:
        """Why its answers' log-probabilities cannot make the loss; empty where they can.

        The first token's are asked for as the refinements are sampled and again untempered: they are to be the same.
        """
        sampling = self._config.sampling
        as_sampled = SamplingSettings(sampling.temperature, sampling.top_p, sampling.top_k, 1, ())
        plain = replace(as_sampled, temperature=1.0, top_p=1.0)
        try:
            first, second = (self.client.first_logprobs(PROBE, one, top_k) for one in (as_sampled, plain))
        except (TeacherRefusedError, TeacherUnreachableError) as refusal:  # some answer 501 to what they do not know
            self.client.first_logprobs(PROBE, as_sampled, None)  # raises where it is not they that it refuses
            return (
                f"it refuses to tell the log-probabilities of loss.teacher_top_k = {top_k} tokens a position, of which "
                f"a lower number may pass. The server's words: {refusal}"
            )
        if not first or not second:
            return "its answers tell no log-probabilities"
        if len(first) < top_k or len(second) < top_k:
            return f"it tells {min(len(first), len(second))} tokens a position, fewer than loss.teacher_top_k = {top_k}"
        sampled, untempered = dict(first), dict(second)
        shared = sampled.keys() & untempered.keys()
        if any(abs(sampled[token] - untempered[token]) > _tolerance(untempered[token]) for token in shared):
            return "its log-probabilities hang on the temperature and top-p that it samples with"
        return ""

    def _contexts(self, trajectories: Sequence[Trajectory], prompts: PromptBuilder) -> list[tuple[int, ...]]:
        if self._config.loss.teacher_context == "refine":
            return [t.refine_prompt_token_ids or () for t in trajectories]
        messages = {t.problem.id: prompts.solve_message(t.problem) for t in trajectories}
        tokenized = self.client.tokenize(list(messages.values()), as_chat=True)
        by_problem = {problem: found.token_ids for problem, found in zip(messages, tokenized, strict=True)}
        return [by_problem[t.problem.id] for t in trajectories]

    def _check_server(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Small requests find a wrong key, a wrong model, another tokenizer, a context that is too short, or a server
        that scores fewer tokens a position than the loss is to have."""
        found = self.client.tokenize(SAMPLE_TEXTS, as_chat=False)
        for text, theirs in zip(SAMPLE_TEXTS, found, strict=True):  # its completions arrive as ids, scored or not
            ours = tokenizer(text, add_special_tokens=False)["input_ids"]
            require_same_ids(text, ours, theirs.token_ids, teacher=f"teacher endpoint {self._served.endpoint}")
        config = self._config
        prompt, new = config.refine.max_prompt_tokens, config.refine.max_new_tokens
        fields = "refine.max_prompt_tokens + refine.max_new_tokens"
        if not config.refines:
            prompt, new = config.sampling.max_prompt_tokens, config.sampling.max_new_tokens
            fields = "sampling.max_prompt_tokens + sampling.max_new_tokens"
        needed = prompt + new + (self.top_k is not None)  # a server that scores writes one token besides
        limit = found[0].max_model_len
        if needed > limit:
            raise ContextTooLongError(
                f"{fields} = {prompt} + {new} tokens, and {needed} in all, but teacher endpoint "
                f"{self._served.endpoint} takes {limit}; lower them"
            )
        if self.top_k is not None:
            self._check_top_k(found[0].token_ids[:2], self.top_k)

    def _check_top_k(self, two_ids: Sequence[int], top_k: int) -> None:
        """Ask for so many tokens once, before a round is sampled that nothing could score."""
        one_token = [(two_ids[:1], two_ids[1:])]
        try:
            self.client.score(one_token, top_k)
        except TeacherRefusedError as refusal:
            self.client.score(one_token, 1)  # raises where the number is not what it refuses
            raise TeacherRefusedError(
                f"loss.teacher_top_k = {top_k}, but teacher endpoint {self._served.endpoint} does not tell so many "
                "tokens a position; lower loss.teacher_top_k, or have the operator raise the server's --max-logprobs "
                f"(20 where it is not set) and the endpoint's max_logprobs. The server's words: {refusal}"
            ) from refusal


def was_scored_before(identity: Mapping[str, Any]) -> bool | None:
    """Whether the teacher told log-probabilities to the run of that `same_run.run_identity`; None: it does not say."""
    divergence = identity.get("loss.divergence")
    return None if divergence is None else divergence != "cross_entropy"


def _tolerance(logprob: float) -> float:
    """Nats by which two answers to one question may differ: half-precision kernels, which see other batches."""
    return 0.1 + 0.05 * abs(logprob)


def _endpoint(served: ServedTeacherConfig, world: World) -> Endpoint:
    """As one of the run's processes may use it: together they ask for no more at a time than the operator allows."""
    if served.max_concurrency < world.size:
        raise SpecError(
            f"devices = {world.size}: teacher endpoint {served.endpoint} takes {served.max_concurrency} requests at a "
            f"time, and each device asks for its own; set devices to at most {served.max_concurrency}, or have the "
            "operator raise the endpoint's max_concurrency"
        )
    key = None
    if served.api_key_env is not None:
        key = os.environ.get(served.api_key_env)
        if not key:
            raise TeacherRefusedError(
                f"teacher endpoint {served.endpoint}: the variable {served.api_key_env}, which is to hold its key, "
                "is not set where the job runs; its operator sets it"
            )
    return Endpoint(
        name=served.endpoint,
        base_url=served.base_url,
        model=served.model,
        api_key=key,
        network=served.network,
        is_vllm=served.api == "vllm",
        timeout_seconds=served.timeout_seconds,
        max_tries=served.max_tries,
        max_concurrency=world.part_of(served.max_concurrency),
    )
