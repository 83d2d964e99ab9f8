"""What an exit means, and what is read from the kernel and the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.job_state import JobStatus
from worker.failures import (
    LOG_TAIL_BYTES,
    AttemptEnd,
    ChildExit,
    EndKind,
    Failure,
    classify_exit,
    count_oom_kills,
    final_status,
    hang_in_log,
    log_tail,
)

SIGKILL, SIGTERM = -9, -15


def child_exit(
    code: int,
    *,
    was_asked_to_stop: bool = False,
    was_oom_killed: bool = False,
    has_finished: bool = False,
    reported: Failure | None = None,
) -> ChildExit:
    return ChildExit(code, was_asked_to_stop, was_oom_killed, has_finished, reported)


@pytest.mark.parametrize(
    ("child", "kind", "code"),
    [
        (child_exit(0, has_finished=True), EndKind.FINISHED, None),
        (child_exit(0), EndKind.FAILED, "engine_crashed"),
        (child_exit(75), EndKind.FAILED, "engine_crashed"),
        (child_exit(75, was_asked_to_stop=True), EndKind.STOPPED, None),
        (child_exit(1), EndKind.FAILED, "engine_crashed"),
        (child_exit(74), EndKind.FAILED, "disk_full"),
        (child_exit(1, reported=Failure("non_finite_loss", "step 3")), EndKind.FAILED, "non_finite_loss"),
        (child_exit(SIGKILL), EndKind.FAILED, "engine_crashed"),
        (child_exit(SIGKILL, was_oom_killed=True), EndKind.FAILED, "host_out_of_memory"),
        (child_exit(1, was_oom_killed=True), EndKind.FAILED, "host_out_of_memory"),
        (child_exit(SIGTERM, was_oom_killed=True), EndKind.FAILED, "engine_crashed"),
        (child_exit(SIGTERM, was_asked_to_stop=True), EndKind.STOPPED, None),
        (child_exit(SIGKILL, was_asked_to_stop=True), EndKind.STOPPED, None),
        (child_exit(SIGKILL, reported=Failure("disk_full", "no space")), EndKind.FAILED, "disk_full"),
    ],
)
def test_exits_are_classified(child: ChildExit, kind: EndKind, code: str | None) -> None:
    end = classify_exit(child)
    assert end.kind is kind
    assert (end.failure and end.failure.code) == code


def test_an_unknown_code_counts_as_internal_error() -> None:
    assert Failure("from_a_newer_engine", "?").known.code == "internal_error"


def test_a_failure_beyond_repair_beats_a_cancel_and_one_within_does_not() -> None:
    broken = AttemptEnd(EndKind.FAILED, 1, Failure("dataset_invalid", "row 17"))
    passing = AttemptEnd(EndKind.FAILED, 1, Failure("teacher_unreachable", "timed out"))
    decided = [
        final_status(JobStatus.CANCELLING, end, num_without_progress=9, max_attempts=3).status
        for end in (broken, passing)
    ]
    assert decided == [JobStatus.FAILED, JobStatus.CANCELLED]


def test_the_kernels_counter_is_readable_here() -> None:
    count = count_oom_kills()
    assert count is not None
    assert count >= 0


def test_the_log_tail_is_short_and_without_secrets(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("x" * 10_000 + "\nrequest with hf_abcdefgh failed\n")
    tail = log_tail(log, {"HF_TOKEN": "hf_abcdefgh", "HOME": "/root/home", "API_KEY": "short"})
    assert len(tail) <= LOG_TAIL_BYTES + 10
    assert tail.endswith("\nrequest with [redacted] failed\n")


def test_the_log_tail_of_a_child_that_never_started_is_empty(tmp_path: Path) -> None:
    assert log_tail(tmp_path / "engine.log", {}) == ""


def test_a_hang_that_the_watchdog_ended_names_the_rank_and_the_phase(tmp_path: Path) -> None:
    assert hang_in_log(tmp_path) is None
    (tmp_path / "engine.log").write_text(
        "[rank3]:[E1128 20:11:02.1 ProcessGroupNCCL.cpp:683] [Rank 3] Watchdog caught collective operation timeout: "
        "WorkNCCL(SeqNum=712, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600043 ms\n"
        "terminate called after throwing an instance of 'c10::DistBackendError'\n"
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "events.jsonl").write_text('{"type": "phase", "phase": "training"}\n{"type": "pha')
    assert hang_in_log(tmp_path) == Failure(
        "collective_timeout",
        "rank 3 waited for the other processes in phase training, in ALLREDUCE, until NCCL's time limit",
    )
