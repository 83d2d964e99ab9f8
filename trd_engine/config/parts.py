"""The parts of a run's spec, each checked by itself; what must fit between the parts is checked in `run`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class StrictConfig(BaseModel):
    """Base of all parts: unknown fields, NaN and infinity are errors, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


PositiveInt = Annotated[int, Field(ge=1)]
_DecayRate = Annotated[float, Field(ge=0, lt=1)]


class DataSource(StrictConfig):
    """Where rows come from: exactly one of a path, a hub id or a generator."""

    path: str | None = None
    """JSON Lines, JSON, CSV or Parquet file, or a dataset folder."""
    hub: str | None = None
    """Id of a dataset on the Hugging Face hub, ``owner/name``."""
    config: str | None = None
    """Configuration of a hub dataset or of a dataset folder; needed if it has several."""
    split: str = "train"
    """Split of a hub dataset or of a dataset folder."""
    revision: str | None = None
    """Commit or tag of a hub dataset; None reads the newest."""
    generator: str | None = None
    """Name of a `reasoning-gym` generator."""
    size: PositiveInt = 1000
    """Number of problems that the generator makes."""
    seed: int = 0
    """Seed of the generator."""
    columns: dict[str, str] = {}
    """Maps our field names to the rows' columns, or to paths into them: {"answer": "reward_model.ground_truth"}."""
    references_judged: bool = False
    """Whether the reference answers were judged before, as those of an upload are; a run does not judge them again."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("path", "hub", "generator") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of path, hub and generator, not {' and '.join(given) or 'none'}")
        return self


class TokenWeightsConfig(StrictConfig):
    """Which tokens of the target carry the loss, and their weights; formulas in `distillation.token_weights`."""

    skip_special_tokens: bool = False
    """No loss on special tokens, including the end-of-turn token, so that stopping is not trained
    (arXiv 2603.25562)."""
    skip_first_tokens: Annotated[int, Field(ge=0)] = 0
    """No loss on this many first tokens of each completion (SDFT, arXiv 2601.19897); 0 skips none."""
    prefix_tokens: PositiveInt | None = None
    """Loss on only this many first tokens of each completion (arXiv 2602.15260); None: on all of them."""
    entropy_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Loss on only this share of each completion's tokens: those with the highest `entropy_score` (TIP,
    arXiv 2604.14084, which uses 0.5); None: on all of them."""
    entropy_score: Literal["entropy", "soft_or"] = "entropy"
    """Score that ranks the tokens for `entropy_share`: the student's entropy h, or TIP's h + d − h·d with the
    divergence d, which also keeps confident errors."""
    drift_gamma: Annotated[float, Field(ge=0)] = 0.0
    """γ in wₜ = 1 + γ (1 − share of the trajectory's drift from the teacher before t) (IW-OPD, arXiv 2606.22600,
    which uses 0.5); 0: all weights are 1."""
    pass_rate: bool = False
    """Weight each problem by p (1 − p), where p is the share of its rollouts that pass (PACED, arXiv 2603.11178)."""

    @model_validator(mode="after")
    def _some_tokens_remain(self) -> Self:
        if self.prefix_tokens is not None and self.skip_first_tokens >= self.prefix_tokens:
            raise ValueError(
                f"skip_first_tokens = {self.skip_first_tokens} skips all of prefix_tokens = {self.prefix_tokens}; "
                "lower skip_first_tokens or raise prefix_tokens"
            )
        if self.entropy_score != "entropy" and self.entropy_share is None:
            raise ValueError(
                f"entropy_score = {self.entropy_score} ranks tokens for entropy_share, which is not set; set it, or "
                "leave entropy_score out"
            )
        return self


class ServersConfig(StrictConfig):
    """One or several equal HTTP servers. Holds no secret, only the name of the variable that does."""

    base_url: str
    """Base URL up to and including the API version, as in `https://teacher.example/v1`."""
    replicas: tuple[str, ...] = ()
    """Base URLs of further servers that give the same answers: requests are spread over all of them, and go to others
    if one fails."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the API key; None: the server needs no key."""
    network: Literal["public", "private", "loopback"] = "public"
    """Networks that the server's address may belong to, see `trd_data.network_address`."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Time limit of one request, until the last byte of the response."""
    max_tries: PositiveInt = 6
    """Attempts at one request, the first one included."""
    max_concurrency: PositiveInt = 16
    """Requests that the run has open at the same time, over all its processes and all servers."""


class ServedTeacherConfig(ServersConfig):
    """A teacher behind an OpenAI-compatible server."""

    endpoint: str
    """Name of the endpoint in messages for users, in the place of its address."""
    model: str
    """Name of the model on the server."""
    api: Literal["openai", "vllm"] = "openai"
    """openai: refines by text, and may return log-probabilities of the tokens that it writes; vllm: also returns token
    ids, and log-probabilities of any text."""


class SamplerPoolConfig(ServersConfig):
    """vLLM servers of one model that sample for runs (`trd_engine.generation.served.start`)."""

    name: str
    """Name of the pool in messages for users, in the place of its addresses."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """Time limit of one request, its time in the server's queue included. A server that is no longer alive is found
    earlier if there are others."""
    max_concurrency: PositiveInt = 256
    """Requests that the run has open at the same time, over all its processes and all servers."""


class LossConfig(StrictConfig):
    """The token loss, and the context in which the teacher scores."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd", "cross_entropy"] = "forward_kl"
    """forward_kl is KL(teacher‖student), reverse_kl is KL(student‖teacher), jsd mixes both by `beta`; cross_entropy is
    −log p of the refined trajectory's tokens, for a served teacher that returns no log-probabilities."""
    support: Literal["full", "top_k", "sampled"] = "full"
    """Tokens that the divergence sums over: the whole vocabulary, the teacher's top k tokens with both distributions
    renormalised on them, or the sampled token alone (a Monte-Carlo estimate)."""
    teacher_top_k: PositiveInt = 32
    """Number of tokens of support top_k (the paper's value, after Fu et al. 2026, arXiv 2603.25562)."""
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Teacher's weight β in the mixture of jsd; 0 means forward KL and 1 reverse KL."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Both models' logits are divided by this before the softmax; the paper uses 1."""
    token_clip: Annotated[float, Field(ge=0)] = 0.0
    """Upper bound on each token's divergence, in nats; the paper's forward_kl_clip uses 0.1; 0: no bound."""
    teacher_context: Literal["vanilla", "refine"] = "vanilla"
    """What the teacher sees before the target. vanilla: the problem; refine: the problem and the rollout; both with the
    reference solution if the student teaches itself. If left out in mode trd: refine, as in the paper."""
    token_weights: TokenWeightsConfig = TokenWeightsConfig()
    """Masks and weights on the token losses; by default all tokens have the same weight."""
    reverse_after: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of all steps after which forward KL changes to reverse KL (PACED, arXiv 2603.11178); None: never."""

    @model_validator(mode="after")
    def _is_defined(self) -> Self:
        if self.divergence == "jsd" and self.support != "full":
            raise ValueError(f"support = {self.support}: jsd is defined on the full vocabulary only; use full")
        if self.reverse_after is not None and self.divergence != "forward_kl":
            raise ValueError(
                f"reverse_after = {self.reverse_after:g} needs divergence forward_kl to start from, not "
                f"{self.divergence}; use forward_kl, or leave reverse_after out"
            )
        return self


class SamplingConfig(StrictConfig):
    """How rollouts and evaluation samples are drawn. Refinements use the same temperature, top_p and top_k."""

    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """Library that samples; auto takes vLLM if it is installed and can serve the models, else transformers."""
    temperature: Annotated[float, Field(ge=0)] = 0.6
    """Sampling temperature (the paper's value); 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus sampling's probability mass (the paper's value); 1 switches it off."""
    top_k: Annotated[int, Field(ge=-1)] = 20
    """Tokens that sampling chooses from at each position (the paper's value); -1 or 0 switches it off."""
    max_prompt_tokens: PositiveInt = 2048
    """Problems with a longer solving prompt are dropped and counted (the paper's value)."""
    max_new_tokens: PositiveInt = 16384
    """Upper bound on a rollout's tokens (the paper's value)."""
    thinking: bool | None = None
    """Passed to the chat template as ``enable_thinking``; None: the template's default."""
    placement: Literal["colocated", "separate"] = "colocated"
    """Devices that vLLM samples on. colocated: the training devices, in turns with training; separate:
    `tensor_parallel_size` further devices for each of them."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs over which vLLM shards one copy of a model."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=0.98)] | None = None
    """Share of a GPU's memory for the vLLM engine that is awake: student's and teacher's engine take turns. None: what
    is free beside the training if colocated, 0.9 if separate."""
    pool: SamplerPoolConfig | None = None
    """Servers of the student's step-0 weights that sample in the place of an engine of the run; they get the student's
    adapter from it, by version. Needs `lora`."""

    @model_validator(mode="after")
    def _placement_fits(self) -> Self:
        if self.tensor_parallel_size > 1 and self.placement == "colocated":
            raise ValueError(
                f"tensor_parallel_size = {self.tensor_parallel_size}: a colocated engine has only the one device of "
                "its training process; set placement to separate, or leave tensor_parallel_size out"
            )
        if self.placement == "separate" and self.engine == "transformers":
            raise ValueError(
                "placement = separate: transformers samples on the training devices; set engine to vllm, or leave "
                "placement out"
            )
        if self.pool is not None and (self.placement == "separate" or self.engine == "transformers"):
            raise ValueError(
                f"pool = {self.pool.name}: its servers sample, and no engine of the run; leave engine and placement "
                "out, or leave pool out"
            )
        return self


class RefineConfig(StrictConfig):
    """The refinement: its token budgets, and which refined trajectories are trained on."""

    max_prompt_tokens: PositiveInt = 18432
    """Upper bound on the teacher's prompt; the rollout's tail is cut first to fit, then the reference solution's. The
    paper's value with another model as teacher; 22,528 if the student teaches itself."""
    max_new_tokens: PositiveInt = 16384
    """Upper bound on a refined trajectory's tokens (the paper's value)."""
    keep: Literal["all", "fail_to_pass"] = "all"
    """fail_to_pass trains only on refinements that pass and whose rollout failed (an ablation that hurts in the
    paper). The number of steps is that of all: the kept trajectories are repeated to fill them."""
    pool: SamplerPoolConfig | None = None
    """Servers of the teacher model that refine; required if `sampling.pool` is set and the teacher is another, local
    model, and refused otherwise."""


class PromptsConfig(StrictConfig):
    """Templates of the user message. None: the template in the model's folder, else the task's own."""

    solve: str | None = None
    """What the student sees, and the teacher in the vanilla context. Placeholder: {problem}."""
    privileged: str | None = None
    """What a student that teaches itself sees in the vanilla context. Placeholders: {problem}, {solution}."""
    refine: str | None = None
    """What another model sees to refine a rollout. Placeholders: {problem}, {attempt}."""
    privileged_refine: str | None = None
    """What a student that teaches itself sees to refine a rollout. Placeholders: {problem}, {solution}, {attempt}."""

    @model_validator(mode="after")
    def _templates_have_placeholders(self) -> Self:
        for name in type(self).model_fields:
            template = getattr(self, name)
            needed = ["{problem}", *(["{solution}"] if name.startswith("privileged") else [])]
            missing = [placeholder for placeholder in needed if template is not None and placeholder not in template]
            if missing:
                raise ValueError(f"{name}: the template lacks {' and '.join(missing)}; write it where the text belongs")
        return self


class LoraConfig(StrictConfig):
    """Low-rank adapters on the student's linear layers."""

    rank: PositiveInt = 64
    """Rank r of the adapters (the paper's value)."""
    alpha: Annotated[float, Field(gt=0)] = 128
    """The adapters' output is multiplied by alpha / rank (the paper's value)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' input during training."""
    target_modules: Literal["auto"] | list[str] = "auto"
    """Names of the linear layers with an adapter; auto: all in the blocks (in most
    families q, k, v, o, gate, up and down, as in the paper), but those that choose experts."""


class TeacherUpdateConfig(StrictConfig):
    """How the teacher's weights follow the student's if the student teaches itself."""

    kind: Literal["frozen", "ema", "periodic"] = "frozen"
    """frozen: the weights of step 0 throughout, as in the paper; ema: a moving average of the student's weights;
    periodic: a copy of the student's weights, made every `every_steps` steps."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Kind ema only. After each step, teacher = decay · teacher + (1 − decay) · student."""
    every_steps: PositiveInt = 100
    """Kind periodic only. Steps between two copies."""


class OptimConfig(StrictConfig):
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    """Peak learning rate (the paper's value)."""
    batch_size: PositiveInt = 128
    """Trajectories per optimizer step over all devices (the paper's 8 GPUs × 1 × 16)."""
    epochs: PositiveInt = 1
    """Passes over each round's trajectories (the paper's value)."""
    max_steps: PositiveInt | None = None
    """Upper bound on the optimizer steps of the whole run; None: as many as rounds and epochs give."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of all steps in which the learning rate rises linearly from 0 (the paper's value)."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Learning rate at the end of the cosine, as a share of the peak (the paper's value)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.005
    """AdamW's decoupled weight decay (the paper's value)."""
    betas: tuple[_DecayRate, _DecayRate] = (0.9, 0.95)
    """AdamW's β₁ and β₂ (the paper's values)."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Upper bound to which the gradient's L2 norm is clipped (the paper's value)."""
    micro_batch_tokens: PositiveInt | None = None
    """Upper bound on each model's tokens in one forward pass on one device; a longer sequence is passed alone. None: as
    the memory allows, up to 16,384 of the student and 65,536 of the teacher on a GPU, and up to 16,384 of either on a
    CPU. Changes memory and speed, not the loss."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass: less memory, about a third more time. None: only on a GPU."""


class EvaluationConfig(StrictConfig):
    """The student's scores on problems that are not trained on."""

    dataset: DataSource | None = None
    """Problems to evaluate on; None: a held-out share of the training problems."""
    holdout: Annotated[float, Field(ge=0, le=0.9)] | None = None
    """Share of the training problems that is held out if `dataset` is None. None: 2 %, but at most 64 problems, so that
    evaluations take a small part of a large run; 0: no evaluation."""
    k: PositiveInt = 16
    """Samples per problem, for avg@k and pass@k (the paper's value)."""
    num_probe_samples: Annotated[int, Field(ge=0)] = 4
    """Number of problems whose first sample is reported in full at each evaluation; 0: none."""
    every_steps: PositiveInt | None = None
    """Steps between two evaluations; None: only before training and at its end."""
    at_start: bool = True
    """Also score the untrained student. Switch it off if many runs share one student whose score is known."""


class DiagnosisConfig(StrictConfig):
    """What is measured on each round's trajectories before they are trained on."""

    num_trajectories: Annotated[int, Field(ge=0)] = 64
    """Upper bound on the trajectories per round that are scored again in every context; 0: no diagnosis."""
    steps: Literal["task", "reference"] = "task"
    """How a rollout's first wrong step is found. task: by the task's own check (math: the equalities in the text);
    reference: where it leaves the reference solution, which must then show the only right way, one step per line."""


class CheckpointsConfig(StrictConfig):
    """Which checkpoints are written and kept."""

    every_steps: PositiveInt = 100
    """Steps between two checkpoints; each round's collection and the run's end also make one."""
    keep: PositiveInt = 3
    """Number of newest checkpoints that are kept."""
    merged: bool = True
    """With LoRA: also write the merged model beside the adapter."""
