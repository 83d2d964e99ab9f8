"""One estimate of a run: for each phase its tokens, memory, disk and time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trd_estimate.counts import Counts
from trd_estimate.duration import expected_lengths, phase_seconds
from trd_estimate.hardware import GB, Hardware
from trd_estimate.memory import (
    WORKSPACE_BYTES,
    Models,
    checkpoint_bytes,
    engine_weights,
    host_bytes,
    is_served,
    longest_sequences,
    phase_memory,
    takes_turns,
)
from trd_estimate.spec import RunSpec

PHASES = ("preparing", "evaluating", "rollout", "refining", "diagnosing", "training", "saving")
"""The phases in the order of a round; `contract.job_state.Phase` has the same names."""
TRAJECTORY_TOKEN_BYTES = 12
"""Bytes of a token of a trajectory: its id, and its text in memory and in the round's file."""


@dataclass(frozen=True)
class PhaseEstimate:
    """What one phase takes; None if unknown."""

    phase: str
    num_tokens: int | None
    """Expected: sampled tokens, and in training those that student and teacher read."""
    max_tokens: int | None
    """If every text is as long as its budget."""
    device_bytes: dict[str, int]
    """Bytes on each training device, by owner; empty if the models' sizes are unknown."""
    host_bytes: int | None
    """Bytes of the machine's memory, besides the libraries of each process."""
    disk_bytes: int | None
    """Bytes on disk because of it at the end."""
    seconds: float | None

    @property
    def total_bytes(self) -> int:
        """Bytes on each training device."""
        return sum(self.device_bytes.values())


def estimate_phases(
    spec: RunSpec,
    models: Models | None,
    counts: Counts | None,
    hardware: Hardware,
    seconds: Mapping[str, float] | None = None,
) -> list[PhaseEstimate]:
    """Return the phases of a run. `models`, `counts`: None if unknown. `seconds`: times that are known already."""
    memory = phase_memory(spec, models, hardware) if models is not None else {}
    if seconds is None:
        is_known = models is not None and counts is not None
        seconds = phase_seconds(spec, models, counts, hardware, memory) if is_known and models and counts else {}
    tokens = _tokens(spec, counts) if counts is not None else {}
    found = []
    for phase in PHASES:
        if phase == "refining" and not spec.refines:
            continue
        expected, most = tokens.get(phase, (0, 0) if counts is not None else (None, None))
        host = disk = None
        if models is not None:
            host = host_bytes(spec, models, hardware, phase)
            disk = 0
            if phase == "saving":
                disk = (spec.checkpoints.keep + 1) * checkpoint_bytes(spec, models, hardware)
        if phase in ("rollout", "refining") and expected is not None:
            disk = expected * TRAJECTORY_TOKEN_BYTES
        found.append(PhaseEstimate(phase, expected, most, memory.get(phase, {}), host, disk, seconds.get(phase)))
    return found


def _tokens(spec: RunSpec, counts: Counts) -> dict[str, tuple[int, int]]:
    """Return (expected, most) tokens by phase."""
    lengths, longest = expected_lengths(spec), longest_sequences(spec)
    has_teacher = not is_served(spec)
    read = lengths.student_sequence + (lengths.teacher_sequence if has_teacher else 0)
    most = longest[0] + (longest[1] if has_teacher else 0)
    diagnosed = min(spec.diagnosis.num_trajectories * spec.rounds, counts.num_trajectories)
    return {
        "evaluating": (round(counts.num_evaluation_samples * lengths.rollout), counts.max_evaluation_tokens),
        "rollout": (round(counts.num_trajectories * lengths.rollout), counts.max_rollout_tokens),
        "refining": (round(counts.num_trajectories * lengths.refined), counts.max_refined_tokens),
        "diagnosing": (round(3 * diagnosed * read), 3 * diagnosed * most),
        "training": (round(counts.num_trained_trajectories * read), counts.num_trained_trajectories * most),
    }


def evaluation_share(phases: Iterable[PhaseEstimate]) -> float | None:
    """Return the share of the run's time that evaluating takes; None if times are unknown."""
    seconds = {one.phase: one.seconds for one in phases if one.seconds is not None}
    total = sum(seconds.values())
    return seconds.get("evaluating", 0.0) / total if total > 0 else None


def shortfalls(spec: RunSpec, models: Models, hardware: Hardware, phases: Iterable[PhaseEstimate]) -> list[str]:
    """Return what does not fit a GPU, each with what to change; the run itself checks what is free then."""
    total, found = hardware.memory_bytes, list[str]()
    if total is None:
        return found
    by_name = {one.phase: one for one in phases}
    needed = by_name["training"].total_bytes
    if needed > total:
        found.append(
            f"memory: training takes {needed / GB:.0f} GB of each GPU, and {hardware.kind} has {total / GB:.0f}; use "
            "LoRA, more devices, or shorter sampling.max_new_tokens and refine.max_new_tokens"
        )
    if not takes_turns(spec, hardware):
        return found
    budgets = {"rollout": spec.sampling.max_prompt_tokens + spec.sampling.max_new_tokens}
    if "refining" in by_name and not is_served(spec):
        budgets["refining"] = (spec.refine.max_prompt_tokens or 0) + spec.refine.max_new_tokens
    for phase, num_tokens in budgets.items():
        token = engine_weights(spec, models, hardware, phase)[1]
        left = total - by_name[phase].total_bytes + by_name[phase].device_bytes["kv_cache"]
        if left < num_tokens * token:
            field = "refine" if phase == "refining" else "sampling"
            remedy = f"at most {left // token} tokens fit" if left > 0 else "use LoRA, a smaller model or more devices"
            found.append(
                f"memory: {field}.max_prompt_tokens + {field}.max_new_tokens = {num_tokens}: beside the training, "
                f"{max(0, left) / GB:.1f} GB are left for keys and values after the engine's weights and "
                f"{WORKSPACE_BYTES / GB:.1f} GB of work space; {remedy}"
            )
    return found
