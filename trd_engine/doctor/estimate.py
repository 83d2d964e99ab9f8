"""``python -m trd_engine estimate``: what a spec will take on this machine, or on a device that is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from transformers import AutoConfig

from trd_engine.config import RunConfig
from trd_engine.data.problems import load_problems, split_holdout
from trd_engine.doctor.findings import FailedError, Machine, NotTriedError
from trd_engine.doctor.machine_checks import local_hardware
from trd_engine.runtime.errors import ModelNotFoundError, SpecError
from trd_engine.runtime.hardware import choose_device
from trd_estimate.counts import Counts, count
from trd_estimate.hardware import GB, Hardware
from trd_estimate.memory import Models
from trd_estimate.phases import PhaseEstimate, estimate_phases, evaluation_share, shortfalls
from trd_estimate.shape import ModelShape, shape_of


@dataclass(frozen=True)
class SpecEstimate:
    """The phases of a spec on some device."""

    hardware: Hardware
    counts: Counts
    phases: list[PhaseEstimate]
    shortfalls: list[str]
    """What does not fit, each with what to change."""

    @property
    def seconds(self) -> float:
        """Duration of the whole run."""
        return sum(one.seconds or 0.0 for one in self.phases)


def estimate_spec(config: RunConfig, hardware: Hardware) -> SpecEstimate:
    """Read the data and the models' configurations, and estimate. Raises `SpecError` if a model's sizes are unknown."""
    assert config.dataset is not None
    problems, evaluation = list(load_problems(config.dataset, config.task).problems), config.evaluation
    num_evaluated, num_heldout = None, 0
    if evaluation.dataset is not None:
        num_evaluated = len(load_problems(evaluation.dataset, config.task).problems)
    elif evaluation.holdout != 0:
        num_heldout = len(split_holdout(problems, evaluation.holdout, config.seed)[1])
    counts = count(config, len(problems), num_heldout, num_evaluated)
    teacher = _shape("teacher", config.teacher) if isinstance(config.teacher, str) else None
    models = Models(_shape("student", config.student), teacher)
    phases = estimate_phases(config, models, counts, hardware)
    return SpecEstimate(hardware, counts, phases, shortfalls(config, models, hardware, phases))


def check_estimate(machine: Machine) -> str:
    """Compare what a spec takes with the GPU's memory, the disk and the machine's memory."""
    if machine.config is None:
        raise NotTriedError("no spec was given")
    found = estimate_spec(machine.config, local_hardware(machine.device))
    if found.shortfalls:
        raise FailedError("; ".join(found.shortfalls), "change the spec as the message says")
    disk = sum(one.disk_bytes or 0 for one in found.phases)
    free = shutil.disk_usage(machine.folder).free
    if disk > free:
        remedy = "free some, lower checkpoints.keep, or choose another folder"
        raise FailedError(f"the run's files take {disk / GB:.1f} GB; {machine.folder} has {free / GB:.1f} free", remedy)
    host = max(one.host_bytes or 0 for one in found.phases)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if host > total:
        remedy = "use fewer devices or full fine-tuning, whose sleeping engines keep no copy of their weights"
        raise FailedError(f"sleeping engines and checkpoints take {host / GB:.0f} GB of {total / GB:.0f}", remedy)
    peak = max(one.total_bytes for one in found.phases)
    return f"{peak / GB:.1f} GB of a device, {disk / GB:.1f} GB of disk, {found.seconds / 3600:.1f} hours"


def _shape(role: str, source: str) -> ModelShape:
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"{role} {source!r} was not found: {error}") from error
    shape = shape_of(config.to_dict())
    if shape is None:
        raise SpecError(f"{role} {source}: its configuration does not contain its sizes, or it is a mixture of experts")
    return shape


def main(config: RunConfig, hardware: Hardware | None, *, as_json: bool) -> int:
    """Print the estimate for some hardware, None being this machine's; return 1 if the run does not fit."""
    found = estimate_spec(config, hardware or local_hardware(choose_device("auto")))
    if as_json:
        share = evaluation_share(found.phases)
        print(json.dumps({**asdict(found), "seconds": found.seconds, "evaluation_share": share}))  # noqa: T201
    else:
        print("\n".join(_lines(found)))  # noqa: T201
    return int(bool(found.shortfalls))


def _lines(found: SpecEstimate) -> Iterator[str]:
    yield f"{found.counts.num_steps} steps on {found.counts.num_trajectories} trajectories, {found.hardware.kind}"
    yield f"{'phase':<11}{'tokens':>15}{'GB a device':>13}{'GB host':>9}{'GB disk':>9}{'hours':>8}  GB by owner"
    for one in found.phases:
        owners = ", ".join(f"{k.replace('_', ' ')} {v / GB:.1f}" for k, v in one.device_bytes.items() if v >= GB / 20)
        hours = "" if one.seconds is None else f"{one.seconds / 3600:.2f}"
        sizes = f"{one.total_bytes / GB:>13.1f}{(one.host_bytes or 0) / GB:>9.1f}{(one.disk_bytes or 0) / GB:>9.1f}"
        yield f"{one.phase:<11}{one.num_tokens or 0:>15,}{sizes}{hours:>8}  {owners}"
    share = evaluation_share(found.phases)
    source = "at most, calibrated"
    if found.hardware.is_gpu:
        source = f"computed from expected lengths and peak figures of {found.hardware.speed_source}"
    yield f"in all {found.seconds / 3600:.2f} hours ({source}), of which evaluating takes {share or 0.0:.1%}"
    yield from found.shortfalls
