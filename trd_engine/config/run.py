"""The whole spec of a run, what must fit between its parts, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from trd_data.unique_json import loads_unique
from trd_engine.config.parts import (
    CheckpointsConfig,
    DataSource,
    DiagnosisConfig,
    EvaluationConfig,
    LoraConfig,
    LossConfig,
    OptimConfig,
    PositiveInt,
    PromptsConfig,
    RefineConfig,
    SamplingConfig,
    ServedTeacherConfig,
    StrictConfig,
    TeacherUpdateConfig,
)
from trd_engine.runtime.errors import SpecError


class RunConfig(StrictConfig):
    """One run of the engine."""

    mode: Literal["opd", "opsd", "trd"]
    """opd: another model scores the student's rollouts; opsd: the student's own step-0 weights score them, and see the
    reference solution; trd: the teacher first refines each rollout, and the student trains on the refined one."""
    student: str
    """Model to train: folder or hub id."""
    teacher: str | ServedTeacherConfig | None = None
    """Folder or hub id of another model, or a served teacher. None: the student's own weights, which see the reference
    solution; required in mode opsd, an error in mode opd."""
    dataset: DataSource | None = None
    """Training problems. Required in a spec file; may be left out only if problems are passed to `distil`."""
    task: Literal["math", "exact", "choice", "code", "reasoning_gym"] = "math"
    """How prompts are written and answers are verified, see `tasks.registry`."""
    loss: LossConfig = LossConfig()
    """The token loss."""
    sampling: SamplingConfig = SamplingConfig()
    """How rollouts and evaluation samples are drawn."""
    refine: RefineConfig = RefineConfig()
    """The refinement, in mode trd."""
    prompts: PromptsConfig = PromptsConfig()
    """Templates of the user message."""
    lora: LoraConfig | None = LoraConfig()
    """Low-rank adapters; None: full fine-tuning."""
    teacher_update: TeacherUpdateConfig = TeacherUpdateConfig()
    """How the teacher's weights follow the student's if the student teaches itself."""
    teacher_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Dtype of the teacher's separate copy of weights; auto: that of the training passes, and fp32 for kind ema."""
    optim: OptimConfig = OptimConfig()
    """The optimizer and its schedule."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Dtype of the matrix products in the training passes; auto: bf16 on a GPU that has it (Ampere or newer), else
    fp32."""
    rounds: PositiveInt = 1
    """Collections of rollouts. The problems are divided among the rounds, and each round's rollouts come from the
    student as the rounds before have trained it; the paper uses 1."""
    samples_per_prompt: PositiveInt = 1
    """Rollouts per problem (the paper's value)."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """The student's scores on problems that are not trained on."""
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    """Which checkpoints are written and kept."""
    diagnosis: DiagnosisConfig = DiagnosisConfig()
    """What is measured on each round's trajectories."""
    devices: PositiveInt = 1
    """Number of training processes, one device each; `torchrun` starts them."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything random in the run."""
    max_pass_tokens: tuple[PositiveInt, PositiveInt] | None = None
    """Most tokens of a training pass of the student and of the teacher, besides `optim.micro_batch_tokens`. A worker
    sets it to half of what was too large in an earlier attempt. Changes memory and speed, not the loss."""
    strict: bool = False
    """End the run if anything is reported as a warning by the end of the first round's rollouts."""
    device: str = "auto"
    """PyTorch's name of the training device; auto: a GPU if there is one, else the CPU."""
    student_name: str | None = None
    """Name of the student in the model card; None: its folder or id."""
    teacher_name: str | None = None
    """Name of the teacher in the model card; None: its folder, id or endpoint."""

    @model_validator(mode="before")
    @classmethod
    def _default_teacher_context(cls, document: Any) -> Any:
        """Set the default of `loss.teacher_context`, which depends on the mode."""
        if not isinstance(document, dict) or document.get("mode") != "trd":
            return document
        loss = document.get("loss", {})
        is_open = isinstance(loss, dict) and "teacher_context" not in loss
        return {**document, "loss": {**loss, "teacher_context": "refine"}} if is_open else document

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mode == "opd" and self.teacher is None:
            raise ValueError("mode opd needs a teacher; set teacher, or use mode opsd")
        if self.mode == "opsd" and self.teacher is not None:
            raise ValueError("mode opsd takes no teacher; leave it out, or use mode opd")
        if self.loss.token_weights.pass_rate and self.samples_per_prompt < 2:
            raise ValueError(
                "loss.token_weights.pass_rate weighs by p (1 − p), which is 0 if a problem has one rollout; set "
                "samples_per_prompt to 2 or more"
            )
        if self.loss.teacher_context == "refine" and self.mode != "trd":
            raise ValueError(
                f"loss.teacher_context = refine: in mode {self.mode} the teacher would see the rollout that it scores; "
                "use vanilla, or mode trd"
            )
        if self.refine.keep != "all" and self.mode != "trd":
            raise ValueError(
                f"refine.keep = {self.refine.keep}: mode {self.mode} refines nothing; leave it out, or use mode trd"
            )
        return self

    @model_validator(mode="after")
    def _pools_fit_models(self) -> Self:
        pool = self.sampling.pool
        if pool is not None and self.lora is None:
            raise ValueError(
                f"sampling.pool = {pool.name}: servers take adapters, and full fine-tuning has none; set lora, or "
                "leave pool out"
            )
        needs_teacher_pool = pool is not None and self.refines and isinstance(self.teacher, str)
        if needs_teacher_pool and self.refine.pool is None:
            raise ValueError(
                "sampling.pool is set, and the teacher that refines is another model; name its servers in refine.pool"
            )
        if self.refine.pool is not None and not needs_teacher_pool:
            raise ValueError(
                f"refine.pool = {self.refine.pool.name} is for a teacher model in mode trd beside a sampling.pool; "
                "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _teacher_fits_update_and_precision(self) -> Self:
        kind = self.teacher_update.kind
        if kind != "frozen" and self.teacher is not None:
            raise ValueError(
                f"teacher_update.kind = {kind} is for a student that teaches itself; leave teacher out, or use frozen"
            )
        if self.teacher_precision == "bf16" and kind == "ema":
            raise ValueError("teacher_precision = bf16 is too coarse for the small changes of an average; use fp32")
        if self.teacher_precision != "auto" and self.teacher is None and self.lora is not None:
            raise ValueError(
                f"teacher_precision = {self.teacher_precision}: with LoRA the teacher is the student's own base model, "
                "which has no copy; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _served_teacher_fits_loss(self) -> Self:
        loss, served = self.loss, self.served_teacher
        if loss.divergence == "cross_entropy":
            if served is None or self.mode != "trd":
                raise ValueError("loss.divergence = cross_entropy needs a served teacher in mode trd; use forward_kl")
            if loss.support != "full" or loss.temperature != 1.0:
                raise ValueError("loss.divergence = cross_entropy has no support and no temperature; leave them out")
            if loss.token_weights.drift_gamma or loss.token_weights.entropy_score != "entropy":
                raise ValueError(
                    "loss.token_weights: drift_gamma and entropy_score need the teacher's log-probabilities, and with "
                    "loss.divergence = cross_entropy there are none; leave them out"
                )
        elif served is not None:
            if served.api != "vllm":
                self._check_openai_teacher(served)
            if loss.support != "top_k":
                raise ValueError(
                    f"loss.support = {loss.support}: a served teacher returns the log-probabilities of a few tokens "
                    "only; use top_k"
                )
        if served is not None and self.teacher_precision != "auto":
            raise ValueError(
                f"teacher_precision = {self.teacher_precision}: a served teacher's precision is set on its server; "
                "leave it out"
            )
        return self

    def _check_openai_teacher(self, served: ServedTeacherConfig) -> None:
        """Raise ValueError if a server that is not vLLM cannot score: it returns log-probabilities of its own text."""
        weights, name = self.loss.token_weights, f"teacher endpoint {served.endpoint}"
        if self.loss.teacher_context != "refine":  # which only mode trd has
            remedy = "mode trd" if self.mode != "trd" else "teacher_context refine, or loss.divergence cross_entropy"
            raise ValueError(
                f"{name} returns log-probabilities only of its own answers to the refining prompt; use {remedy}"
            )
        if self.loss.divergence != "forward_kl" or self.loss.reverse_after is not None:
            raise ValueError(
                f"{name} may return no log-probabilities for some tokens; their loss is then the cross-entropy, a "
                "forward KL; use loss.divergence forward_kl without reverse_after"
            )
        if weights.drift_gamma or weights.entropy_score != "entropy":
            raise ValueError(
                "loss.token_weights: drift_gamma and entropy_score need log-probabilities of all tokens, and "
                f"{name} may return none for some; leave them out"
            )

    @property
    def served_teacher(self) -> ServedTeacherConfig | None:
        """The teacher if it is a served one."""
        return self.teacher if isinstance(self.teacher, ServedTeacherConfig) else None

    @property
    def teacher_folder(self) -> str:
        """Folder or hub id whose tokenizer and templates make the teacher's prompts: the student's if the teacher is
        served or the student itself."""
        return self.teacher if isinstance(self.teacher, str) else self.student

    @property
    def refines(self) -> bool:
        """Whether the student is trained on refined trajectories."""
        return self.mode == "trd"

    @property
    def max_target_tokens(self) -> int:
        """Upper bound on the tokens of the trajectory that is trained on."""
        return self.refine.max_new_tokens if self.refines else self.sampling.max_new_tokens

    @property
    def is_privileged(self) -> bool:
        """Whether the student teaches itself and sees the reference solution as the teacher."""
        return self.teacher is None


def parse_config(document: dict[str, Any]) -> RunConfig:
    """Validate a spec. Raises `SpecError` with every wrong field and its value."""
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        raise SpecError("; ".join(map(_problem, error.errors(include_url=False)))) from error


def load_config(path: Path) -> RunConfig:
    """Read and validate the spec in a JSON file. Raises `SpecError`."""
    try:
        document = loads_unique(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{path} is not a readable JSON file: {error}") from error
    if not isinstance(document, dict):
        raise SpecError(f"{path}: the spec must be a JSON object, not {type(document).__name__}")
    config = parse_config(document)
    if config.dataset is None:
        raise SpecError("dataset: this field is required; give a path, a hub id or a generator")
    return config


def _problem(error: ErrorDetails) -> str:
    """Name field, fault and value, which our own messages name themselves."""
    field = ".".join(map(str, error["loc"])) or "spec"
    if error["type"] == "value_error":
        return f"{field}: {error['ctx']['error']}"
    return f"{field}: {error['msg']} (given: {error['input']!r:.80})"
