"""The body of ``POST /jobs``, with bounds and the paper's defaults.

`JobSpec` is the spec as the user wrote it. `JobSpec.resolved` returns it with every default made explicit; the
database stores, the API shows and the worker runs the resolved spec. Checks that need only the spec are made here, at
construction; the service makes the checks that need the operator's models, the datasets or the caller's quota.

Defaults are the settings of Trajectory-Refined Distillation (arXiv 2606.08432).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from contract.dataset_ref import DatasetRef
from contract.integrations import Integration
from contract.loss_spec import PRESET_LOSSES, LossSpec, Preset
from contract.messages import queue_name
from contract.optim_spec import LoraSpec, OptimSpec
from contract.sampling_spec import RefineSpec, SamplingSpec
from contract.strict_model import WITHOUT_CONTROLS, StrictModel, contradiction
from contract.teacher_spec import ModelName, ServedTeacher, TeacherRef, TeacherUpdateSpec


class Mode(StrEnum):
    """The kind of distillation: OPD, OPSD, or the trajectory-refined form of either."""

    OPD = "opd"
    OPSD = "opsd"
    TRD = "trd"


Template = Annotated[str, Field(min_length=1, max_length=100_000)]


class PromptsSpec(StrictModel):
    """Templates of the user message; None means the model folder's template, or else the task's built-in one."""

    solve: Template | None = None
    """Placeholders: {problem}."""
    privileged: Template | None = None
    """Placeholders: {problem}, {solution}."""
    refine: Template | None = None
    """Placeholders: {problem}, {attempt}."""
    privileged_refine: Template | None = None
    """Placeholders: {problem}, {solution}, {attempt}."""

    @model_validator(mode="after")
    def _placeholders(self) -> Self:
        for name, needed in _PLACEHOLDERS.items():
            template = getattr(self, name)
            missing = [p for p in needed if template is not None and p not in template]
            if missing:
                raise contradiction(
                    f"prompts.{name}",
                    template if len(template) <= 60 else template[:57] + "...",
                    f"the template does not contain {' and '.join(missing)}",
                    f"write {' and '.join(missing)} where the text belongs",
                )
        return self


_PLACEHOLDERS: dict[str, tuple[str, ...]] = {
    "solve": ("{problem}",),
    "privileged": ("{problem}", "{solution}"),
    "refine": ("{problem}", "{attempt}"),
    "privileged_refine": ("{problem}", "{solution}", "{attempt}"),
}


DEFAULT_HOLDOUT = 0.02
MAX_DEFAULT_HELDOUT = 64
"""Problems that are held out at most if the spec names no share."""


class EvaluationSpec(StrictModel):
    """The student's scores on problems that training never sees."""

    dataset: DatasetRef | None = None
    """Problems to evaluate on; None holds out a share of the training problems."""
    holdout: Annotated[float, Field(ge=0.0, le=0.9)] | None = None
    """Share of the training problems that is held out if ``dataset`` is None. None: 2 %, but at most 64 problems, so
    that evaluations take a small part of a large run; 0 switches evaluation off."""
    k: Annotated[int, Field(ge=1, le=1024)] = 16
    """Samples per problem, for avg@k and pass@k."""
    num_probe_samples: Annotated[int, Field(ge=0, le=100)] = 4
    """Number of problems whose first sample is stored at each evaluation, to show how the student's answers change. The
    problems are always the same; 0 stores none."""
    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Also evaluate every N steps; None: only before and after training."""

    @property
    def holds_out(self) -> bool:
        """Whether problems are taken from the training data."""
        return self.dataset is None and self.holdout != 0

    def num_heldout(self, num_problems: int) -> int:
        """Return the number of training problems that are held out: the engine's rule, in expectation."""
        if not self.holds_out:
            return 0
        wanted = num_problems * (DEFAULT_HOLDOUT if self.holdout is None else self.holdout)
        return max(1, round(wanted if self.holdout is not None else min(wanted, MAX_DEFAULT_HELDOUT)))


class DiagnosisSpec(StrictModel):
    """The diagnosis of each round's trajectories before they are trained on."""

    num_trajectories: Annotated[int, Field(ge=0, le=10_000)] = 64
    """Maximum number of trajectories per round that are scored again in every context; 0 switches the diagnosis off."""
    steps: Literal["task", "reference"] = "task"
    """How a rollout's first wrong step is found: by the task (math: by the equalities in the text), or as the first
    step that differs from the reference solution. The reference must then show the only correct way, one step per
    line (or between ``;`` or ``|``)."""


class CheckpointsSpec(StrictModel):
    """When checkpoints are written, and which are kept."""

    every_steps: Annotated[int, Field(ge=1)] = 100
    """Steps between checkpoints. One more is written with the trajectories of each round, and one at the end."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 3
    """Number of newest checkpoints that are kept."""
    merged: bool = True
    """With LoRA: also write the merged model, beside the adapter."""


Tag = Annotated[str, Field(min_length=1, max_length=64), WITHOUT_CONTROLS]


class JobSpec(StrictModel):
    """One distillation job."""

    mode: Mode
    """opd and opsd train on the rollout; trd trains on the refined trajectory."""
    student: ModelName
    """Model to train: a name of GET /models, an allowed hub id or folder."""
    teacher: TeacherRef | None = None
    """The frozen model that scores and refines. Required by opd, refused by opsd, optional in trd (without a teacher,
    the student's step-0 weights are the teacher and see the reference solution)."""
    dataset: DatasetRef
    """Problems to train on: rows with a problem, an answer and optionally a solution."""
    task: Literal["math", "exact", "choice", "code", "reasoning_gym"] = "math"
    """How answers are verified."""
    preset: Preset | None = None
    """One of the paper's variants; None means trd in mode trd, and forward_kl otherwise."""
    loss: LossSpec = LossSpec()
    """The divergence between student and teacher."""
    sampling: SamplingSpec = SamplingSpec()
    """How rollouts are sampled from the student."""
    refine: RefineSpec = RefineSpec()
    """How rollouts are refined; used only in mode trd."""
    prompts: PromptsSpec = PromptsSpec()
    """Prompt templates that replace the built-in ones."""
    lora: LoraSpec | None = LoraSpec()
    """LoRA adapters; None means full fine-tuning."""
    teacher_update: TeacherUpdateSpec = TeacherUpdateSpec()
    """Whether and how the teacher's weights follow the student's."""
    teacher_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the teacher's weights if they are a copy: another model, or the student with full fine-tuning. auto
    means the precision of the training passes, and fp32 for a moving average."""
    optim: OptimSpec = OptimSpec()
    """The optimizer and its schedule."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the training passes; auto means bf16 on a GPU that has it, else fp32."""
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Number of rounds. The problems are divided among them; a round is trained on before the next one starts."""
    samples_per_prompt: Annotated[int, Field(ge=1, le=1024)] = 1
    """Rollouts per problem."""
    evaluation: EvaluationSpec = EvaluationSpec()
    """How the student is evaluated."""
    checkpoints: CheckpointsSpec = CheckpointsSpec()
    """When checkpoints are written, and which are kept."""
    diagnosis: DiagnosisSpec = DiagnosisSpec()
    """The diagnosis of each round's trajectories before they are trained on."""
    integrations: Annotated[list[Integration], Field(max_length=4)] = []  # noqa: RUF012 - pydantic copies it
    """Trackers that get the run's figures (wandb, mlflow, tensorboard, trackio), and a hub that gets its last
    checkpoint; see docs/integrations.md."""
    devices: Annotated[int, Field(ge=1, le=1024)] = 1
    """Devices to train on, one process each; `num_devices` adds those that only sample."""
    queue: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\w.-]+$")] | None = None
    """Queue to wait in; None chooses it by the number of devices."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Jobs with a higher priority start first within a queue."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything random in the run."""
    strict: bool = False
    """Refuse the job if there is any notice about its data, models or settings, and end the run if there is one by the
    end of the first round's rollouts; see docs/data.md for the notices."""
    name: Annotated[str, Field(min_length=1, max_length=200), WITHOUT_CONTROLS] | None = None
    """Display name; need not be unique."""
    tags: Annotated[list[Tag], Field(max_length=32)] = []  # noqa: RUF012 - pydantic copies it
    """Tags to filter jobs by."""
    metadata: Annotated[dict[Annotated[str, WITHOUT_CONTROLS], str], Field(max_length=32)] = {}  # noqa: RUF012 - pydantic copies it
    """Free key-value pairs, stored and shown but not interpreted."""

    @model_validator(mode="after")
    def _mode_fits_teacher(self) -> Self:
        if self.mode is Mode.OPD and self.teacher is None:
            raise contradiction(
                "teacher",
                None,
                "mode opd distils from another model",
                "name a teacher, or use mode opsd (the student teaches itself with the reference solution)",
            )
        if self.mode is Mode.OPSD and self.teacher is not None:
            raise contradiction(
                "teacher",
                self.teacher,
                "in mode opsd the teacher is the student's own step-0 weights",
                "leave teacher out, or use mode opd",
            )
        return self

    @model_validator(mode="after")
    def _preset_fits_mode(self) -> Self:
        if self.preset is Preset.TRD and self.mode is not Mode.TRD:
            raise contradiction(
                "preset",
                "trd",
                f"it trains on the refined trajectory, but mode {self.mode} has none",
                'set mode to "trd", or choose another preset',
            )
        if self.preset not in (None, Preset.TRD) and self.mode is Mode.TRD:
            raise contradiction(
                "preset",
                str(self.preset),
                "it trains on the rollout, but mode trd trains on the refined trajectory",
                'set mode to "opd" or "opsd", or leave preset out and set loss',
            )
        if self.loss.teacher_context == "refine" and self.mode is not Mode.TRD:
            raise contradiction(
                "loss.teacher_context",
                "refine",
                f"in mode {self.mode} the teacher would see the rollout that it scores",
                'set loss.teacher_context to "vanilla", or mode to "trd"',
            )
        return self

    @model_validator(mode="after")
    def _keep_fits_mode(self) -> Self:
        if self.refine.keep != "all" and self.mode is not Mode.TRD:
            raise contradiction(
                "refine.keep",
                self.refine.keep,
                f"mode {self.mode} refines nothing",
                'set mode to "trd", or leave it out',
            )
        return self

    @model_validator(mode="after")
    def _pools_fit_models(self) -> Self:
        pool, teacher_pool = self.sampling.pool, self.refine.pool
        if pool is not None and self.lora is None:
            why = "servers take LoRA adapters, and full fine-tuning has none"
            raise contradiction("sampling.pool", pool, why, "set lora, or leave it out")
        is_needed = pool is not None and self.refines and isinstance(self.teacher, str)
        if is_needed != (teacher_pool is not None):
            why = "servers of the teacher are for jobs with sampling.pool whose teacher model refines, which need them"
            what = "name a pool that serves the teacher" if is_needed else "leave it out"
            raise contradiction("refine.pool", teacher_pool, why, what)
        return self

    @model_validator(mode="after")
    def _teacher_weights_are_possible(self) -> Self:
        kind, precision = self.teacher_update.kind, self.teacher_precision
        if kind != "frozen" and self.teacher is not None:
            raise contradiction(
                "teacher_update.kind",
                kind,
                "only a job without a teacher model can update the teacher's weights",
                "leave teacher out, or set it to frozen",
            )
        if precision == "bf16" and kind == "ema":
            raise contradiction(
                "teacher_precision",
                precision,
                "it is too coarse for the small updates of a moving average",
                "use fp32 or auto",
            )
        if precision != "auto" and self.teacher is None and self.lora is not None:
            raise contradiction(
                "teacher_precision",
                precision,
                "with LoRA the teacher is the student's base model, and no copy of it exists",
                "leave it out, or set lora to null",
            )
        return self

    @model_validator(mode="after")
    def _pass_rates_are_defined(self) -> Self:
        if self.loss.token_weights.pass_rate and self.samples_per_prompt < 2:
            raise contradiction(
                "loss.token_weights.pass_rate",
                True,
                "with one rollout per problem the pass rate is 0 or 1, so that p (1 − p) is always 0",
                "set samples_per_prompt to 2 or more",
            )
        return self

    @model_validator(mode="after")
    def _cross_entropy_fits_teacher(self) -> Self:
        if self.loss.divergence != "cross_entropy":
            return self
        if not isinstance(self.teacher, ServedTeacher) or self.mode is not Mode.TRD:
            raise contradiction(
                "loss.divergence",
                "cross_entropy",
                "it is only for mode trd with a served teacher, which may return no log-probabilities",
                'use "forward_kl"',
            )
        weights = self.loss.token_weights
        for name, is_given in (
            ("drift_gamma", bool(weights.drift_gamma)),
            ("entropy_score", weights.entropy_score != "entropy"),
        ):
            if is_given:
                raise contradiction(
                    f"loss.token_weights.{name}",
                    getattr(weights, name),
                    "it needs the teacher's log-probabilities, which the cross-entropy does not have",
                    "leave it out",
                )
        return self

    @model_validator(mode="after")
    def _served_teacher_has_no_precision(self) -> Self:
        if isinstance(self.teacher, ServedTeacher) and self.teacher_precision != "auto":
            raise contradiction(
                "teacher_precision",
                self.teacher_precision,
                "the server chooses a served teacher's precision",
                "leave it out",
            )
        return self

    @model_validator(mode="after")
    def _resolved_loss_is_legal(self) -> Self:
        _ = self.resolved_loss
        return self

    @property
    def resolved_loss(self) -> LossSpec:
        """The preset's loss, overridden by the fields that the user gave."""
        preset = self.resolved_preset
        given = {name: getattr(self.loss, name) for name in self.loss.model_fields_set}
        if given.get("teacher_context", "") is None:
            del given["teacher_context"]
        return LossSpec(**{**PRESET_LOSSES[preset], **given})

    @property
    def resolved_preset(self) -> Preset:
        """The preset that the user gave, or the mode's default."""
        if self.preset is not None:
            return self.preset
        return Preset.TRD if self.mode is Mode.TRD else Preset.FORWARD_KL

    @property
    def samples_apart(self) -> bool:
        """True if separate devices sample."""
        return self.sampling.placement == "separate"

    @property
    def num_devices(self) -> int:
        """Number of devices that the job needs at the same time."""
        return self.devices * (1 + self.sampling.tensor_parallel_size * self.samples_apart)

    @property
    def refines(self) -> bool:
        """True if the student is trained on the refined trajectory y_r."""
        return self.mode is Mode.TRD

    @property
    def is_privileged(self) -> bool:
        """True if the teacher is the student's step-0 weights, which see the reference solution."""
        return self.teacher is None

    @property
    def default_refine_prompt_tokens(self) -> int:
        """The paper's limit on the refining prompt, which without a teacher also contains the reference solution."""
        return 22_528 if self.is_privileged else 18_432

    def resolved(self) -> JobSpec:
        """Return the same job with every default made explicit. Resolving twice changes nothing.

        The defaults of a valid spec are valid, so that nothing is validated again: validation of the full spec would
        make each request slower.
        """
        refine = self.refine
        if refine.max_prompt_tokens is None:
            refine = refine.model_copy(update={"max_prompt_tokens": self.default_refine_prompt_tokens})
        return self.model_copy(
            update={
                "preset": self.resolved_preset,
                "loss": self.resolved_loss,
                "refine": refine,
                "queue": queue_name(self.queue, self.num_devices),
            }
        )
