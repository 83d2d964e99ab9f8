"""The engine's spec: one run, validated.

The names are those of the service's job spec, so that a resolved job is, less its queue and tags,
a valid spec here; paths stand where the service has ids. Everything is checked at construction.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trd_engine.runtime.errors import SpecError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


PositiveInt = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(ge=0, lt=1)]


class DataSource(_Strict):
    """Where rows come from: exactly one of a path, a hub id or a generator."""

    path: str | None = None
    """JSONL or Parquet file, or a dataset folder."""
    hub: str | None = None
    config: str | None = None
    """Which of several configurations of a hub's dataset or of a folder to read."""
    split: str = "train"
    revision: str | None = None
    generator: str | None = None
    """Name of a `reasoning-gym` generator."""
    size: PositiveInt = 1000
    seed: int = 0
    columns: dict[str, str] = {}
    """Our field's name to the row's column, for example {"problem": "question"}."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("path", "hub", "generator") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of path, hub and generator, not {given or 'none'}")
        return self


class TokenWeightsConfig(_Strict):
    """Which tokens of the target carry the loss, and their weights; see `distillation.token_weights`."""

    skip_special_tokens: bool = False
    skip_first_tokens: Annotated[int, Field(ge=0)] = 0
    prefix_tokens: PositiveInt | None = None
    entropy_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    entropy_score: Literal["entropy", "soft_or"] = "entropy"
    drift_gamma: Annotated[float, Field(ge=0)] = 0.0
    pass_rate: bool = False

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.prefix_tokens is not None and self.skip_first_tokens >= self.prefix_tokens:
            raise ValueError(
                f"skip_first_tokens {self.skip_first_tokens} leaves nothing of prefix_tokens {self.prefix_tokens}; "
                "lower the one or raise the other"
            )
        if self.entropy_score != "entropy" and self.entropy_share is None:
            raise ValueError(f"entropy_score {self.entropy_score} ranks tokens for entropy_share; give that too")
        return self


class ServedTeacherConfig(_Strict):
    """A teacher behind an OpenAI-compatible server. Holds no secret, only the name of the variable that does."""

    endpoint: str
    """What messages call it."""
    base_url: str
    """Up to and with the version, as in `https://teacher.example/v1`."""
    model: str
    """As the server names it."""
    api: Literal["openai", "vllm"] = "openai"
    """openai: refines by text, and may tell log-probabilities of the tokens that it writes; vllm: tells token ids, and
    log-probabilities of any text."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key."""
    network: Literal["public", "private", "loopback"] = "public"
    """Where its address may lie, see `generation.endpoint_address`."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    """For one answer, to its last byte."""
    max_tries: PositiveInt = 6
    max_concurrency: PositiveInt = 16


class LossConfig(_Strict):
    """The token loss, and the context that the teacher scores in."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd", "cross_entropy"] = "forward_kl"
    """cross_entropy: −log p of the refined trajectory's own tokens, for a served teacher that does not score."""
    support: Literal["full", "top_k", "sampled"] = "full"
    teacher_top_k: PositiveInt = 32
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    temperature: Annotated[float, Field(gt=0)] = 1.0
    token_clip: Annotated[float, Field(ge=0)] = 0.0
    teacher_context: Literal["vanilla", "refine"] = "vanilla"
    """Left out in mode trd: refine."""
    token_weights: TokenWeightsConfig = TokenWeightsConfig()
    reverse_after: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of all steps after which forward KL gives way to reverse KL."""

    @model_validator(mode="after")
    def _is_defined(self) -> Self:
        if self.divergence == "jsd" and self.support != "full":
            raise ValueError(f"support {self.support}: jsd is defined on the full vocabulary only; use full")
        if self.reverse_after is not None and self.divergence != "forward_kl":
            raise ValueError(f"reverse_after needs divergence forward_kl to start from, not {self.divergence}")
        return self


class SamplingConfig(_Strict):
    """How rollouts and evaluation samples are drawn."""

    engine: Literal["auto", "vllm", "transformers"] = "auto"
    temperature: Annotated[float, Field(ge=0)] = 0.6
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    top_k: Annotated[int, Field(ge=-1)] = 20
    max_prompt_tokens: PositiveInt = 2048
    max_new_tokens: PositiveInt = 16384
    thinking: bool | None = None
    placement: Literal["colocated", "separate"] = "colocated"
    """Of vLLM: on the devices that train, taking turns, or on `tensor_parallel_size` more for each of them."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs over which vLLM divides one copy of a model."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=0.98)] | None = None
    """Share of a GPU's memory for all of a process's vLLM engines; None: 0.5 colocated, 0.9 separate."""

    @model_validator(mode="after")
    def _placement_fits(self) -> Self:
        if self.tensor_parallel_size > 1 and self.placement == "colocated":
            raise ValueError(
                f"tensor_parallel_size {self.tensor_parallel_size}: colocated, an engine has the one device of its "
                "training process; set placement to separate, or leave it out"
            )
        if self.placement == "separate" and self.engine == "transformers":
            raise ValueError("placement separate: transformers samples where the model is trained; use engine vllm")
        return self


class RefineConfig(_Strict):
    """The refinement: its budgets, and what of it is trained on."""

    max_prompt_tokens: PositiveInt = 18432
    max_new_tokens: PositiveInt = 16384
    keep: Literal["all", "fail_to_pass"] = "all"
    """fail_to_pass trains on refinements that pass of rollouts that failed, and on nothing else. The number
    of steps stays as with all; the kept ones are passed over again to fill them."""


class PromptsConfig(_Strict):
    """Templates of the user message; None takes the model folder's own, else the task's."""

    solve: str | None = None
    privileged: str | None = None
    refine: str | None = None
    privileged_refine: str | None = None

    @model_validator(mode="after")
    def _show_what_they_are_about(self) -> Self:
        for name in type(self).model_fields:
            template = getattr(self, name)
            needed = ["{problem}", *(["{solution}"] if name.startswith("privileged") else [])]
            missing = [placeholder for placeholder in needed if template is not None and placeholder not in template]
            if missing:
                raise ValueError(f"{name}: the template lacks {' and '.join(missing)}; write it where the text belongs")
        return self


class LoraConfig(_Strict):
    """Low-rank adapters."""

    rank: PositiveInt = 64
    alpha: Annotated[float, Field(gt=0)] = 128
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["auto"] | list[str] = "auto"


class TeacherUpdateConfig(_Strict):
    """How the weights of a student that teaches itself move, once it is trained."""

    kind: Literal["frozen", "ema", "periodic"] = "frozen"
    """frozen: step 0's for good; ema: a moving average of the student's; periodic: the student's, taken over
    every `every_steps` steps."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Of kind ema, each step: teacher = decay · teacher + (1 − decay) · student."""
    every_steps: PositiveInt = 100
    """Of kind periodic."""


class OptimConfig(_Strict):
    """AdamW, warm-up, cosine."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    batch_size: PositiveInt = 128
    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.005
    betas: tuple[_Share, _Share] = (0.9, 0.95)
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    micro_batch_tokens: PositiveInt | None = None
    gradient_checkpointing: bool | None = None


class EvaluationConfig(_Strict):
    """Scores on problems that training never sees."""

    dataset: DataSource | None = None
    holdout: Annotated[float, Field(ge=0, le=0.9)] = 0.02
    k: PositiveInt = 16
    num_probe_samples: Annotated[int, Field(ge=0)] = 4
    """The first sample of so many problems is reported word for word at each evaluation; 0: none."""
    every_steps: PositiveInt | None = None
    at_start: bool = True
    """Score the untrained student too; off where many runs share one and know its score."""


class DiagnosisConfig(_Strict):
    """What is found out of each round before it is trained on."""

    num_trajectories: Annotated[int, Field(ge=0)] = 64
    """At most so many of a round are scored once more, in every context; 0: none."""
    steps: Literal["task", "reference"] = "task"
    """How a rollout's first wrong step is found: as the task can tell (math: by the arithmetic that the text
    claims), or where it leaves the reference solution, which then has to show the one right way, a step a line."""


class CheckpointsConfig(_Strict):
    """What is kept."""

    every_steps: PositiveInt = 100
    keep: PositiveInt = 3
    merged: bool = True


class RunConfig(_Strict):
    """One run of the engine."""

    mode: Literal["opd", "opsd", "trd"]
    student: str
    """Folder or hub id."""
    teacher: str | ServedTeacherConfig | None = None
    """Folder or hub id, or a served one; None: the student's own weights, shown the reference solution."""
    dataset: DataSource
    task: Literal["math", "exact", "choice", "code", "reasoning_gym"] = "math"
    loss: LossConfig = LossConfig()
    sampling: SamplingConfig = SamplingConfig()
    refine: RefineConfig = RefineConfig()
    prompts: PromptsConfig = PromptsConfig()
    lora: LoraConfig | None = LoraConfig()
    teacher_update: TeacherUpdateConfig = TeacherUpdateConfig()
    teacher_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of a teacher's own copy of weights; auto is that of the training passes, and fp32 for an average."""
    optim: OptimConfig = OptimConfig()
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    rounds: PositiveInt = 1
    samples_per_prompt: PositiveInt = 1
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    diagnosis: DiagnosisConfig = DiagnosisConfig()
    devices: PositiveInt = 1
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: str = "auto"
    """torch's name of the training device; auto takes a GPU where there is one."""
    student_name: str | None = None
    """What to call the student in the model card; None: its folder's name."""
    teacher_name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refined_text_is_scored_in_its_context(cls, document: Any) -> Any:
        """The method's default, which hangs on the mode."""
        if not isinstance(document, dict) or document.get("mode") != "trd":
            return document
        loss = document.get("loss", {})
        is_open = isinstance(loss, dict) and "teacher_context" not in loss
        return {**document, "loss": {**loss, "teacher_context": "refine"}} if is_open else document

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mode == "opd" and self.teacher is None:
            raise ValueError("mode opd needs a teacher; name one, or use mode opsd")
        if self.mode == "opsd" and self.teacher is not None:
            raise ValueError("mode opsd takes no teacher; leave it out, or use mode opd")
        if self.loss.token_weights.pass_rate and self.samples_per_prompt < 2:
            raise ValueError(
                "loss.token_weights.pass_rate needs samples_per_prompt of 2 or more: p (1 − p) of one is 0"
            )
        if self.loss.teacher_context == "refine" and self.mode != "trd":
            raise ValueError("loss.teacher_context refine needs mode trd: the teacher would see the text it scores")
        if self.refine.keep != "all" and self.mode != "trd":
            raise ValueError(f"refine.keep {self.refine.keep} needs mode trd: nothing is refined in mode {self.mode}")
        return self

    @model_validator(mode="after")
    def _teacher_can_be_kept_so(self) -> Self:
        kind = self.teacher_update.kind
        if kind != "frozen" and self.teacher is not None:
            raise ValueError(f"teacher_update.kind {kind} is for a student that teaches itself; leave teacher out")
        if self.teacher_precision == "bf16" and kind == "ema":
            raise ValueError("teacher_precision bf16 is too coarse for the small moves of an average; use fp32")
        if self.teacher_precision != "auto" and self.teacher is None and self.lora is not None:
            raise ValueError(
                f"teacher_precision {self.teacher_precision}: with LoRA the teacher is the student's own base, "
                "and has no copy; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _served_teacher_can_give_the_loss(self) -> Self:
        loss, served = self.loss, self.served_teacher
        if loss.divergence == "cross_entropy":
            if served is None or self.mode != "trd":
                raise ValueError("loss.divergence cross_entropy is for a served teacher in mode trd; use forward_kl")
            if loss.support != "full" or loss.temperature != 1.0:
                raise ValueError("loss.divergence cross_entropy has no support and no temperature; leave them out")
            if loss.token_weights.drift_gamma or loss.token_weights.entropy_score != "entropy":
                raise ValueError("loss.token_weights weighs by the teacher's log-probabilities, and there are none")
        elif served is not None:
            if served.api != "vllm":
                self._require_own_answers_scored(served)
            if loss.support != "top_k":
                raise ValueError(f"loss.support {loss.support}: a served teacher scores a few tokens; use top_k")
        if served is not None and self.teacher_precision != "auto":
            raise ValueError(f"teacher_precision {self.teacher_precision}: a served teacher's is its server's affair")
        return self

    def _require_own_answers_scored(self, served: ServedTeacherConfig) -> None:
        """A server that is no vLLM tells log-probabilities of what it writes alone, or of nothing."""
        weights, name = self.loss.token_weights, f"teacher endpoint {served.endpoint}"
        if self.loss.teacher_context != "refine":  # which only mode trd has
            remedy = "mode trd" if self.mode != "trd" else "teacher_context refine, or loss.divergence cross_entropy"
            raise ValueError(f"{name} gives log-probabilities of its own answers to the refining prompt; use {remedy}")
        if self.loss.divergence != "forward_kl" or self.loss.reverse_after is not None:
            raise ValueError(
                f"{name} may leave tokens without log-probabilities, whose loss is then the cross-entropy, a forward "
                "KL; use loss.divergence forward_kl without reverse_after"
            )
        if weights.drift_gamma or weights.entropy_score != "entropy":
            raise ValueError(f"loss.token_weights weighs by log-probabilities: {name} may leave tokens without")

    @property
    def served_teacher(self) -> ServedTeacherConfig | None:
        """The teacher, where it is a served one."""
        return self.teacher if isinstance(self.teacher, ServedTeacherConfig) else None

    @property
    def teacher_folder(self) -> str:
        """Folder or hub id whose tokenizer and templates write the teacher's prompts; a served one borrows the
        student's, with which its tokenizer agrees."""
        return self.teacher if isinstance(self.teacher, str) else self.student

    @property
    def refines(self) -> bool:
        """True where the student is trained on the refined trajectory."""
        return self.mode == "trd"

    @property
    def max_target_tokens(self) -> int:
        """Of the trajectory that is scored and trained on."""
        return self.refine.max_new_tokens if self.refines else self.sampling.max_new_tokens

    @property
    def is_privileged(self) -> bool:
        """True where the student's step-0 weights teach and see the reference solution."""
        return self.teacher is None


def parse_config(document: dict[str, Any]) -> RunConfig:
    """The spec in `document`; raises `SpecError` that names every wrong field and its value."""
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, e['loc'])) or 'spec'}: {e['msg']} (given: {e['input']!r:.80})"
            for e in error.errors(include_url=False)
        ]
        raise SpecError("; ".join(lines)) from error


def load_config(path: Path) -> RunConfig:
    """The spec in the JSON file at `path`; raises `SpecError`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: not a readable JSON file: {error}") from error
    if not isinstance(document, dict):
        raise SpecError(f"{path}: the spec must be a JSON object, not {type(document).__name__}")
    return parse_config(document)
