"""How long each phase takes: peak figures of the hardware times the shares that are assumed to be reached.

On a CPU the constants were measured once, and every completion is as long as its budget: an upper bound. Left out are
what other work hides (verification, the exchange between GPUs) and the wait for the slowest process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trd_estimate import hardware as machine
from trd_estimate.counts import Counts
from trd_estimate.hardware import Hardware
from trd_estimate.memory import (
    SEPARATE_SHARE,
    WORKSPACE_BYTES,
    Models,
    checkpoint_bytes,
    checkpoints_activations,
    engine_weights,
    is_served,
    num_engines,
    takes_transformers,
)
from trd_estimate.spec import RunSpec

PROMPT_SHARE = 1 / 8
"""Mean length of a solving prompt, as a share of its budget. An assumption: problems have about 250 tokens."""
ROLLOUT_SHARE = 1 / 2
"""Mean length of a rollout. The paper's median is 7.7k of 16,384 tokens."""
REFINED_SHARE = 1 / 12
"""Mean length of a refined trajectory. The paper's median is 0.88k of 16,384; the mean of skewed lengths is larger."""
MAX_SEQUENCES = 1024
"""vLLM's limit on the sequences of one step."""
START_SECONDS = 60.0
ENGINE_START_SECONDS = 120.0
"""Loading libraries and the data; building an engine of vLLM, with its CUDA graphs. Assumptions."""
SECONDS_PER_SAMPLING_FLOP = 5.0e-10
SECONDS_PER_TRAINING_FLOP = 1.2e-10
"""Measured with the committed small models, one thread of a busy CPU; see docs/estimate.md."""


@dataclass(frozen=True)
class Lengths:
    """Expected tokens of one text each."""

    prompt: float
    rollout: float
    refine_prompt: float
    refined: float
    student_sequence: float
    """Prompt and completion, as the student is trained on it."""
    teacher_sequence: float


def expected_lengths(spec: RunSpec) -> Lengths:
    """Return the lengths by the shares of the budgets above."""
    prompt = spec.sampling.max_prompt_tokens * PROMPT_SHARE
    rollout = spec.sampling.max_new_tokens * ROLLOUT_SHARE
    refined = spec.refine.max_new_tokens * REFINED_SHARE if spec.refines else 0.0
    solution = rollout if spec.is_privileged else 0.0  # a reference solution is taken to be as long as a rollout
    refine_prompt = min(float(spec.refine.max_prompt_tokens or math.inf), prompt + solution + rollout)
    if not spec.refines:
        return Lengths(prompt, rollout, 0.0, 0.0, prompt + rollout, prompt + solution + rollout)
    return Lengths(prompt, rollout, refine_prompt, refined, prompt + refined, refine_prompt + refined)


def phase_seconds(
    spec: RunSpec, models: Models, counts: Counts, hardware: Hardware, memory: Mapping[str, Mapping[str, int]]
) -> dict[str, float]:
    """Return the time of each phase in one attempt, if it can be known; `memory` is `phase_memory`'s."""
    if not hardware.is_gpu:
        return _calibrated(spec, models, counts)
    lengths = expected_lengths(spec)
    seconds = {"preparing": _start(spec, models, hardware)}
    if spec.sampling.pool is None:
        seconds |= _sampling_seconds(spec, models, counts, hardware, memory)
    forward, backward = _pass_flops(spec, models, lengths, hardware)
    rate = hardware.flops * machine.FLOPS_SHARE * spec.devices
    seconds["training"] = (forward + backward) * counts.num_trained_trajectories / rate
    diagnosed = min(spec.diagnosis.num_trajectories * spec.rounds, counts.num_trajectories)
    seconds["diagnosing"] = 3 * forward * diagnosed / rate  # each text in up to three contexts
    saved = num_checkpoints(spec, counts) * checkpoint_bytes(spec, models, hardware)
    # Written, and read for its checksums; an upper bound: training waits for the last one's checksums alone.
    seconds["saving"] = 2 * saved / machine.DISK_BYTES_PER_SECOND
    return seconds


def _sampling_seconds(
    spec: RunSpec, models: Models, counts: Counts, hardware: Hardware, memory: Mapping[str, Mapping[str, int]]
) -> dict[str, float]:
    lengths = expected_lengths(spec)
    new, budget = lengths.rollout, spec.sampling.max_new_tokens
    solve = _Sampling(spec, models, hardware, memory, "rollout", lengths.prompt, new, budget)
    seconds = {"rollout": solve.seconds(counts.num_trajectories)}
    if counts.num_evaluations:
        num = counts.num_evaluation_samples // counts.num_evaluations
        seconds["evaluating"] = solve.seconds(num) * counts.num_evaluations
    if spec.refines and not is_served(spec):
        new, budget = lengths.refined, spec.refine.max_new_tokens
        refine = _Sampling(spec, models, hardware, memory, "refining", lengths.refine_prompt, new, budget)
        seconds["refining"] = refine.seconds(counts.num_trajectories)
    return seconds


def num_checkpoints(spec: RunSpec, counts: Counts) -> int:
    """Count one with each round's trajectories, one every so many steps, and one at the end."""
    return spec.rounds + (counts.num_steps - 1) // spec.checkpoints.every_steps + 1


@dataclass(frozen=True)
class _Sampling:
    """Completions by one engine on each device; a step of all sequences reads the weights and their cache once."""

    spec: RunSpec
    models: Models
    hardware: Hardware
    memory: Mapping[str, Mapping[str, int]]
    phase: str
    prompt: float
    new: float
    budget: int

    def seconds(self, num: int) -> float:
        """Return the time for `num` completions in all."""
        on_each = math.ceil(num / self.spec.devices)
        weights, token = engine_weights(self.spec, self.models, self.hardware, self.phase)
        # Long completions are there longer: if lengths are spread evenly up to twice their mean, a sequence that is met
        # at any time has 2/3 of the mean behind it.
        context = self.prompt + self.new * 2 / 3
        if self.spec.sampling.placement == "separate":
            assert self.hardware.memory_bytes is not None
            cache = SEPARATE_SHARE * self.hardware.memory_bytes - weights - WORKSPACE_BYTES
        else:
            cache = self.memory[self.phase]["kv_cache"]
        at_once = max(1, min(int(cache / (token * context)), on_each, MAX_SEQUENCES))
        read = (weights + at_once * context * token) / (self.hardware.bytes_per_second * machine.BANDWIDTH_SHARE)
        step = read + machine.DECODE_STEP_SECONDS
        decoding = max(on_each * self.new / at_once, float(self.budget)) * step
        forward = self.models.sampling(self.phase).forward_flops(self.prompt)
        prefill = on_each * forward / (self.hardware.flops * machine.FLOPS_SHARE)
        return decoding + prefill / self.spec.sampling.tensor_parallel_size


def _start(spec: RunSpec, models: Models, hardware: Hardware) -> float:
    is_vllm = not takes_transformers(spec, hardware)
    read = sum(shape.num_parameters * 2 for shape in (models.student, models.teacher) if shape is not None)
    read_seconds = read * (2 if is_vllm else 1) / machine.DISK_BYTES_PER_SECOND
    return START_SECONDS + read_seconds + ENGINE_START_SECONDS * num_engines(spec) * is_vllm


def _pass_flops(spec: RunSpec, models: Models, lengths: Lengths, hardware: Hardware) -> tuple[float, float]:
    """Return the operations of (both models' forward passes, the rest of training) for one trajectory.

    Backward: one forward's operations for the inputs, one more for the weights if all are trained, and one more to
    compute the activations again.
    """
    student = models.student.forward_flops(lengths.student_sequence)
    shape = models.teacher or models.student
    teacher = 0.0 if is_served(spec) else shape.forward_flops(lengths.teacher_sequence)
    num_more = 1 + (spec.lora is None) + checkpoints_activations(spec, hardware)
    return student + teacher, num_more * student


def _calibrated(spec: RunSpec, models: Models, counts: Counts) -> dict[str, float]:
    """Return the seconds of the phases from 2 operations a parameter and token, 6 to train."""
    ours, theirs = models.student.num_parameters, (models.teacher or models.student).num_parameters
    seconds = {
        "rollout": 2 * ours * counts.max_rollout_tokens * SECONDS_PER_SAMPLING_FLOP,
        "refining": 2 * theirs * counts.max_refined_tokens * SECONDS_PER_SAMPLING_FLOP,
        "training": (6 * ours + 2 * theirs) * counts.max_trained_tokens * SECONDS_PER_TRAINING_FLOP,
        "evaluating": 2 * ours * counts.max_evaluation_tokens * SECONDS_PER_SAMPLING_FLOP,
    }
    return {phase: spent / spec.devices for phase, spent in seconds.items() if spent}
