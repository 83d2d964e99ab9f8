"""What a user may ask for: the body of ``POST /jobs``, with bounds and the paper's defaults.

`JobSpec` is what the user wrote; `JobSpec.resolved` is the same spec with every default made
explicit, which is what the database keeps, the API shows and the worker runs. Checks that need
nothing but the spec itself are made here, at construction; those that need the operator's models,
the datasets or the caller's quota are the service's.

Defaults are the settings of Trajectory-Refined Distillation (arXiv 2606.08432).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from contract.dataset_ref import DatasetRef
from contract.loss_spec import PRESET_LOSSES, LossSpec, Preset
from contract.messages import queue_name
from contract.optim_spec import LoraSpec, OptimSpec
from contract.sampling_spec import SamplingSpec
from contract.strict_model import StrictModel, contradiction
from contract.teacher_spec import ModelName, ServedTeacher, TeacherRef, TeacherUpdateSpec


class Mode(StrEnum):
    """Which distillation: OPD, OPSD, or the trajectory-refined form of either."""

    OPD = "opd"
    OPSD = "opsd"
    TRD = "trd"


class RefineSpec(StrictModel):
    """The refinement; sampled with the temperature, top-p and top-k of `SamplingSpec`."""

    max_prompt_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Longest refining prompt; None takes the paper's 18,432 with a teacher and 22,528 without."""
    max_new_tokens: Annotated[int, Field(ge=1, le=10_000_000)] = 16384
    """Longest refined trajectory."""
    keep: Literal["all", "fail_to_pass"] = "all"
    """Which refined trajectories are trained on: all of them, as the paper does, or only those whose
    rollout failed and whose refinement passed (an ablation: the paper reports that it hurts). The number of
    steps stays; the kept ones are passed over again to fill them."""


Template = Annotated[str, Field(min_length=1, max_length=100_000)]


class PromptsSpec(StrictModel):
    """Templates of the user message; None takes the model folder's own, else the task's built-in ones."""

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
                    f"the template lacks {' and '.join(missing)}",
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


Tag = Annotated[str, Field(min_length=1, max_length=64)]


class JobSpec(StrictModel):
    """One distillation job."""

    mode: Mode
    """opd and opsd train on the raw rollout; trd refines it first."""
    student: ModelName
    """Model to train: a name of GET /models, an allowed hub id or folder."""
    teacher: TeacherRef | None = None
    """Frozen scorer and refiner. Needed by opd, refused by opsd, optional in trd (without one the
    student's own step-0 weights teach, shown the reference solution)."""
    dataset: DatasetRef
    """Problems to train on: rows of problem, answer and optional solution."""
    task: Literal["math", "exact", "choice", "code", "reasoning_gym"] = "math"
    """What makes an answer right."""
    preset: Preset | None = None
    """One of the paper's variants; None takes trd in mode trd, else forward_kl."""
    loss: LossSpec = LossSpec()
    """The divergence between student and teacher."""
    sampling: SamplingSpec = SamplingSpec()
    """How rollouts are sampled from the student."""
    refine: RefineSpec = RefineSpec()
    """How rollouts are refined; only used by the mode trd."""
    prompts: PromptsSpec = PromptsSpec()
    """Prompt templates that replace the built-in ones."""
    lora: LoraSpec | None = LoraSpec()
    """None is full fine-tuning."""
    teacher_update: TeacherUpdateSpec = TeacherUpdateSpec()
    """Whether and how the teacher's weights follow the student's."""
    teacher_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of a teacher's own copy of weights: another model's, or with full fine-tuning the student's. auto is
    that of the training passes, and fp32 for an average."""
    optim: OptimSpec = OptimSpec()
    """The optimizer and its schedule."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the training passes; auto is bf16 on a GPU and fp32 on a CPU."""
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Collections of rollouts; the problems are divided among them, each trained on before the next."""
    samples_per_prompt: Annotated[int, Field(ge=1, le=1024)] = 1
    """Rollouts a problem."""
    evaluation: EvaluationSpec = EvaluationSpec()
    """On what and how often the student is evaluated."""
    checkpoints: CheckpointsSpec = CheckpointsSpec()
    """When checkpoints are written, and which are kept."""
    diagnosis: DiagnosisSpec = DiagnosisSpec()
    """The diagnosis of each round's trajectories before they are trained on."""
    devices: Annotated[int, Field(ge=1, le=1024)] = 1
    """Devices to train on, a process each; `num_devices` adds those that only sample."""
    queue: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\w.-]+$")] | None = None
    """Queue to wait in; None goes by the device count."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Higher goes first within a queue."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything random in the run."""
    strict: bool = False
    """Refuse the job if there is any notice about its data, models or settings, and end the run if there is one by the
    end of the first round's rollouts; see docs/data.md for the notices."""
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """For people; need not be unique."""
    tags: Annotated[list[Tag], Field(max_length=32)] = []  # noqa: RUF012 - pydantic copies it
    """To filter by."""
    metadata: Annotated[dict[str, str], Field(max_length=32)] = {}  # noqa: RUF012 - pydantic copies it
    """Kept and shown, never read."""

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
                f"it trains on the refined trajectory, and mode {self.mode} has none",
                'set mode to "trd", or choose another preset',
            )
        if self.preset not in (None, Preset.TRD) and self.mode is Mode.TRD:
            raise contradiction(
                "preset",
                str(self.preset),
                "it trains on the raw rollout, and mode trd on the refined trajectory",
                'set mode to "opd" or "opsd", or leave preset out and set loss',
            )
        if self.loss.teacher_context == "refine" and self.mode is not Mode.TRD:
            raise contradiction(
                "loss.teacher_context",
                "refine",
                f"in mode {self.mode} the teacher would see the very rollout that it scores",
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
    def _teacher_can_be_kept_so(self) -> Self:
        kind, precision = self.teacher_update.kind, self.teacher_precision
        if kind != "frozen" and self.teacher is not None:
            raise contradiction(
                "teacher_update.kind",
                kind,
                "only a student that teaches itself has a teacher that moves",
                "leave teacher out, or set it to frozen",
            )
        if precision == "bf16" and kind == "ema":
            raise contradiction(
                "teacher_precision", precision, "it is too coarse for the small moves of an average", "use fp32 or auto"
            )
        if precision != "auto" and self.teacher is None and self.lora is not None:
            raise contradiction(
                "teacher_precision",
                precision,
                "with LoRA a student that teaches itself does it with its own base, and there is no copy",
                "leave it out, or set lora to null",
            )
        return self

    @model_validator(mode="after")
    def _pass_rates_can_be_told(self) -> Self:
        if self.loss.token_weights.pass_rate and self.samples_per_prompt < 2:
            raise contradiction(
                "loss.token_weights.pass_rate",
                True,
                "from one rollout a problem's pass rate is 0 or 1, and p (1 − p) is 0 in either case",
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
                "it is for mode trd with a served teacher, which may tell no more than its text",
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
                    "it weighs by the teacher's log-probabilities, and the cross-entropy has none",
                    "leave it out",
                )
        return self

    @model_validator(mode="after")
    def _served_teacher_has_no_precision(self) -> Self:
        if isinstance(self.teacher, ServedTeacher) and self.teacher_precision != "auto":
            raise contradiction(
                "teacher_precision", self.teacher_precision, "a served teacher's is its server's", "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _resolved_loss_is_legal(self) -> Self:
        _ = self.resolved_loss
        return self

    @property
    def resolved_loss(self) -> LossSpec:
        """The loss in force: the preset's, with the fields given beside it."""
        preset = self.resolved_preset
        given = {name: getattr(self.loss, name) for name in self.loss.model_fields_set}
        if given.get("teacher_context", "") is None:
            del given["teacher_context"]
        return LossSpec(**{**PRESET_LOSSES[preset], **given})

    @property
    def resolved_preset(self) -> Preset:
        """The preset in force."""
        if self.preset is not None:
            return self.preset
        return Preset.TRD if self.mode is Mode.TRD else Preset.FORWARD_KL

    @property
    def samples_apart(self) -> bool:
        """True where devices of their own sample."""
        return self.sampling.placement == "separate"

    @property
    def num_devices(self) -> int:
        """All devices that the job needs at once."""
        return self.devices * (1 + self.sampling.tensor_parallel_size * self.samples_apart)

    @property
    def refines(self) -> bool:
        """True where the student is trained on the refined trajectory y_r."""
        return self.mode is Mode.TRD

    @property
    def is_privileged(self) -> bool:
        """True where the student's own step-0 weights teach and see the reference solution."""
        return self.teacher is None

    @property
    def default_refine_prompt_tokens(self) -> int:
        """The paper's budget of the refining prompt: it holds the reference too where the student teaches itself."""
        return 22_528 if self.is_privileged else 18_432

    def resolved(self) -> JobSpec:
        """The same job with every default made explicit. Resolving twice changes nothing.

        What is filled in is legal where the spec is, and is not checked again: every field of a full spec would be,
        and each job would wait for it.
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
