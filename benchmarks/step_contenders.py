"""The contenders of `benchmarks.step`: a training step of TRL's `DistillationTrainer`, and one of ours.

Both have the same random models, prompts, optimizer, precision and threads. Each samples rollouts, which are timed and
discarded, and updates on the same given completions: samplers differ, and losses are only comparable on equal tokens.
"""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.loss_contenders import trl_tiles
from trd_engine.config import OptimConfig
from trd_engine.distillation.batching import pass_tokens, split_into_micro_batches
from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.generation.hf.generator import TransformersGenerator
from trd_engine.models.attention.packing import packing_of
from trd_engine.runtime.hardware import keep_freed_memory
from trd_engine.teachers.local import Teacher
from trd_engine.training.optim import make_optimizer
from trd_engine.training.step import optimizer_step
from trd_engine.types import GenerationRequest, SamplingSettings, TrainingSequence

Precision = Literal["fp32", "bf16"]
VOCABULARY = 49_152
NUM_SPECIAL = 10
"""Special tokens are the first ids; no prompt or completion contains them."""
LEARNING_RATE, BETAS, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-5, (0.9, 0.95), 0.005, 1.0


@dataclass(frozen=True)
class Workload:
    """A batch of prompts and the length of each completion."""

    batch_size: int
    prompt_tokens: tuple[int, int]
    """Minimum and maximum length, drawn uniformly."""
    new_tokens: int
    precision: Precision

    def prompts(self) -> list[tuple[int, ...]]:
        """Return the prompts, the same in every step."""
        numbers = random.Random(0)
        return [_draw(numbers, numbers.randint(*self.prompt_tokens)) for _ in range(self.batch_size)]

    def completions(self, step: int) -> list[tuple[int, ...]]:
        """Return the completions to train on in this step, one per prompt."""
        numbers = random.Random(1 + step)
        return [_draw(numbers, self.new_tokens) for _ in range(self.batch_size)]

    def __str__(self) -> str:
        shortest, longest = self.prompt_tokens
        return f"batch {self.batch_size}, prompts of {shortest} to {longest} tokens, {self.new_tokens} new tokens"


def _draw(numbers: random.Random, count: int) -> tuple[int, ...]:
    return tuple(numbers.randrange(NUM_SPECIAL, VOCABULARY) for _ in range(count))


@dataclass
class Timings:
    """One value per step."""

    rollout_seconds: list[float] = field(default_factory=list)
    update_seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def random_model(seed: int) -> LlamaForCausalLM:
    """Create a random model of SmolLM2-135M's shape in fp32."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            initializer_range=1 / 24,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=1,
        )
    )


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Create a tokenizer in which token 17 is the word t17, so that texts define the token ids."""
    special = ["<eos>", "<pad>", "<unk>"]
    ids = {token: number for number, token in enumerate(special)}
    ids |= {f"t{number}": number for number in range(len(special), VOCABULARY)}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )


def run_ours(workload: Workload, num_steps: int, *, micro_batch_tokens: int | None) -> Timings:
    """Run our engine's parts as a job does, with the generator that is used without vLLM."""
    student, teacher = random_model(0), random_model(1)
    dtype = torch.float32 if workload.precision == "fp32" else torch.bfloat16
    if workload.precision == "bf16":
        teacher = teacher.to(dtype)  # as a run stores a frozen teacher
    generator = TransformersGenerator(
        student, word_tokenizer(), autocast_dtype=None if dtype == torch.float32 else dtype
    )
    config = OptimConfig(learning_rate=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    optimizer = make_optimizer(student, config)
    cpu = torch.device("cpu")
    keep_freed_memory(cpu)
    for model in (student, teacher):
        packing_of(model)  # a run tests packing before it samples
    max_tokens = pass_tokens(micro_batch_tokens, student, None, torch.float32, None)
    models = ModelPair(student, Teacher(teacher), Divergence("forward_kl"), dtype, (11, 12, 13))
    prompts, timings = workload.prompts(), Timings()
    sampling = SamplingSettings(1.0, 1.0, -1, workload.new_tokens, ())
    for step in range(num_steps):
        began = time.perf_counter()
        requests = [GenerationRequest(prompt, 1000 * step + number) for number, prompt in enumerate(prompts)]
        sampled = generator.generate(requests, sampling)
        assert all(len(completion.token_ids) == workload.new_tokens for completion in sampled)
        timings.rollout_seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
        pairs = zip(prompts, workload.completions(step), strict=True)
        sequences = [TrainingSequence(prompt, prompt, target, number) for number, (prompt, target) in enumerate(pairs)]
        batches = split_into_micro_batches(sequences, max_tokens=max_tokens, device=cpu)
        metrics = optimizer_step(models, batches, optimizer, max_grad_norm=MAX_GRAD_NORM)
        optimizer.zero_grad(set_to_none=True)  # as a session does
        timings.update_seconds.append(time.perf_counter() - began)
        timings.losses.append(metrics["loss"])
    return timings


def run_trl(workload: Workload, num_steps: int, *, tiles: tuple[int | None, int | None]) -> Timings:
    """Run TRL's trainer as its documentation starts it on a CPU, with the whole batch in one step."""
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback

    timings = Timings()
    prompts = workload.prompts()

    class Measured(trl.DistillationTrainer):  # type: ignore[misc]
        """Trainer that times the sampling and trains on the given completions."""

        def _generate_single_turn(self, prompt_ids: Any, *arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            sampled = super()._generate_single_turn(prompt_ids, *arguments, **options)
            timings.rollout_seconds.append(time.perf_counter() - began)
            assert all(len(token_ids) == workload.new_tokens for token_ids in sampled)
            given = dict(zip(prompts, workload.completions(len(timings.losses)), strict=True))
            return [list(given[tuple(ids)]) for ids in prompt_ids]

        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            loss = super().compute_loss(*arguments, **options)
            timings.losses.append(float(loss))
            return loss

    class Clock(TrainerCallback):
        """Callback that measures a step's time without its sampling."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            timings.update_seconds.append(time.perf_counter() - self.began - timings.rollout_seconds[-1])

    with tempfile.TemporaryDirectory() as folder, trl_tiles(*tiles):
        texts = [{"prompt": " ".join(f"t{token_id}" for token_id in prompt)} for prompt in prompts]
        Measured(
            model=random_model(0),
            teacher_model=random_model(1),
            args=trl.DistillationConfig(output_dir=folder, **_trl_settings(workload, num_steps)),
            train_dataset=Dataset.from_list(texts),
            processing_class=word_tokenizer(),
            callbacks=[Clock()],
        ).train()
    return timings


def _trl_settings(workload: Workload, num_steps: int) -> dict[str, Any]:
    return {
        "use_cpu": True,
        "bf16": workload.precision == "bf16",
        "use_vllm": False,
        "beta": 0.0,  # the forward KL
        "max_completion_length": workload.new_tokens,
        "generation_kwargs": {"min_new_tokens": workload.new_tokens},
        "gradient_checkpointing": False,
        "per_device_train_batch_size": workload.batch_size,
        "gradient_accumulation_steps": 1,
        "max_steps": num_steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": MAX_GRAD_NORM,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


CONTENDERS = {
    "TRL, default tiles": lambda workload, steps: run_trl(workload, steps, tiles=(None, None)),
    "TRL, tiles 256 x 8192": lambda workload, steps: run_trl(workload, steps, tiles=(256, 8192)),
    "ours": lambda workload, steps: run_ours(workload, steps, micro_batch_tokens=None),
    "ours, whole batch": lambda workload, steps: run_ours(workload, steps, micro_batch_tokens=16_384),
}
