"""The engine's command, killed or stopped at moments that its own output tells, until a resume ends."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.trd_engine.forked import VLLM, fork
from trd_engine.cli import EXIT_STOPPED, main
from trd_engine.models.folders import MANIFEST_FILE
from trd_engine.training.checkpoints import checkpoint
from trd_engine.training.checkpoints.checkpoint import checkpoint_draft, checkpoint_folder
from trd_engine.training.checkpoints.manifest import verify_manifest

Moment = Callable[[Path, list[dict[str, Any]]], bool]
"""Whether it has come, by the run's folder and the events since its process began."""

_TIMINGS = {"step_seconds", "tokens_per_second"}
_RESULTS = ("metrics", "evaluation", "diagnosis", "trajectories", "probe_samples")


def run_and_kill(spec: dict[str, Any], out: Path, moments: Iterable[Moment]) -> None:
    """Kill a run at each of the moments in turn, resume it after each, and then let it end."""
    run_and_interrupt(spec, out, [(moment, signal.SIGKILL) for moment in moments])


def run_and_interrupt(spec: dict[str, Any], out: Path, interruptions: Iterable[tuple[Moment, signal.Signals]]) -> None:
    """Send a run the signals in turn, each at its moment; resume it after each, and then let it end."""
    for moment, sent in interruptions:
        process = start(spec, out)
        try:
            interrupt_at(process, out, moment, sent)
            process.join(timeout=120)
            code = process.exitcode
        finally:
            process.kill()
            process.join()
        assert code == (-signal.SIGKILL if sent == signal.SIGKILL else EXIT_STOPPED), _log(out)
    last = start(spec, out)
    last.join(timeout=300)
    last.kill()
    assert last.exitcode == 0, _log(out)


def start(spec: dict[str, Any], out: Path, work: Callable[[list[str]], int] = main) -> ForkServerProcess:
    """Start a process that begins the run, or resumes it if it has a checkpoint; `work` is the command."""
    path = out.with_suffix(".json")
    path.write_text(json.dumps(spec), encoding="utf-8")
    command = ["run", str(path), "--out", str(out), "--resume"]
    preload = VLLM if spec["sampling"]["engine"] == "vllm" else ""
    return fork(work, command, log=out.with_suffix(".log"), preload=preload)


def never_committing_step_2(command: list[str]) -> int:
    """Run the command with a checkpoint of step 2 that is hashed forever."""
    write_manifest = checkpoint.write_manifest

    def late(folder: Path, **facts: Any) -> dict[str, Any]:
        return threading.Event().wait() if facts["step"] == 2 else write_manifest(folder, **facts)  # type: ignore[return-value]

    checkpoint.write_manifest = late
    return main(command)


def interrupt_at(process: ForkServerProcess, out: Path, moment: Moment, sent: signal.Signals) -> None:
    """Halt the process when the moment has come, and send the signal if it has not passed meanwhile."""
    assert process.pid is not None
    num_before = len(events_so_far(out))
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.is_alive(), f"the run ended before the moment came: {_log(out)}"
        if moment(out, events_so_far(out)[num_before:]):
            _halt(process.pid)
            is_now = moment(out, events_so_far(out)[num_before:])
            if is_now:
                os.kill(process.pid, sent)
            os.kill(process.pid, signal.SIGCONT)
            if is_now:
                return
        time.sleep(0.002)
    raise TimeoutError(f"the moment never came: {_log(out)}")


def _halt(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    status = Path("/proc") / str(pid) / "stat"
    while status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "T":
        time.sleep(0.001)


def events_so_far(out: Path) -> list[dict[str, Any]]:
    """Return the events of a run that may write the next one, and may have written half of it."""
    path = out / "events.jsonl"
    if not path.exists():
        return []
    whole_lines, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole_lines.splitlines()]


def in_phase(phase: str, round_index: int) -> Moment:
    """Return the moment when the run is in this phase of this round."""

    def has_come(_: Path, events: list[dict[str, Any]]) -> bool:
        phases = [(event["phase"], event["round"]) for event in events if event["type"] == "phase"]
        return phases[-1:] == [(phase, round_index)]

    return has_come


def after_step(step: int) -> Moment:
    """Return the moment when the step is taken and reported, and the next is not."""

    def has_come(_: Path, events: list[dict[str, Any]]) -> bool:
        taken = [event["step"] for event in events if event["type"] == "metrics" and "loss" in event["values"]]
        return taken[-1:] == [step]

    return has_come


def while_saving(step: int) -> Moment:
    """Return the moment when a part of the checkpoint of `step` is written, and what makes it one is not."""

    def has_come(out: Path, events: list[dict[str, Any]]) -> bool:
        draft = checkpoint_draft(out, step)
        is_begun = bool(events) and draft.is_dir() and any(draft.iterdir())
        return is_begun and not (draft / MANIFEST_FILE).exists() and draft.is_dir()

    return has_come


def after_events(count: int) -> Moment:
    """Return the moment when this number of events was reported, whatever they are."""
    return lambda _, events: len(events) >= count


def differences(ours: Path, theirs: Path, step: int) -> list[str]:
    """Return how two runs that ended at `step` differ: files of the result, of the state to resume from, of
    trajectories and answers that are not equal byte by byte; and the events that only one of them reported.

    Events of a killed process may be reported again, but not differently.
    """
    names = _unequal(_checkpoint_files(ours, step), _checkpoint_files(theirs, step))
    for folder in ("rounds", "evaluations"):
        names += _unequal(_files(ours / folder), _files(theirs / folder))
    return names + sorted(_results(ours) ^ _results(theirs))


def _unequal(ours: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


def _checkpoint_files(out: Path, step: int) -> dict[str, str]:
    return {entry["name"]: entry["sha256"] for entry in verify_manifest(checkpoint_folder(out, step))["files"]}


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _results(out: Path) -> set[str]:
    rows = [event for event in events_so_far(out) if event["type"] in _RESULTS]
    return {json.dumps(_without_timings(row), sort_keys=True) for row in rows}


def _without_timings(row: dict[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in row.items() if name != "at"}
    if row["type"] == "metrics":
        plain["values"] = {name: value for name, value in row["values"].items() if name not in _TIMINGS}
    return plain


def _log(out: Path) -> str:
    return out.with_suffix(".log").read_text(encoding="utf-8")[-2000:]
