"""Events become rows: all of them, once, and only what is whole."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from contract.tables import Diagnosis, MetricPoint, ProbeSample, Trajectory
from tests.faults.harness.proxies import PostgresProxy
from tests.servers import PostgresServer
from tests.worker.workbench import Workbench, eventually
from worker.engine_events import BadEventError, CheckpointEvent, MetricsEvent, NoticeEvent, parse_event
from worker.lease import Lease, LeaseLostError
from worker.progress import EventTail, Progress


def line(type_: str, **fields: Any) -> str:
    return json.dumps({"type": type_, "at": 1_800_000_000.5, **fields}) + "\n"


class Run:
    """A run's folder that a test writes events into, followed by a `Progress`."""

    def __init__(self, bench: Workbench, lease: Lease, folder: Path) -> None:
        attempt = bench.attempt(lease, progress_seconds=0.02)
        attempt.run_dir = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.checkpoints: list[int] = []
        self.progress = Progress(attempt, on_checkpoint=lambda event: self.checkpoints.append(event.step))

    def write(self, *lines: str) -> None:
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(lines)


@pytest.fixture
def lease(bench: Workbench) -> Lease:
    return bench.claimed()


@pytest.fixture
def run(bench: Workbench, lease: Lease, tmp_path: Path) -> Run:
    return Run(bench, lease, tmp_path / "run")


def test_a_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert tail.new_lines() == []
    path.write_bytes(b'{"a": 1}\n{"b": "\xc3')
    assert tail.new_lines() == [b'{"a": 1}']
    with path.open("ab") as file:
        file.write(b'\xa4"}\n')
    assert tail.new_lines() == ['{"b": "ä"}'.encode()]
    assert tail.new_lines() == []


def test_numbers_that_are_not_finite_become_null() -> None:
    event = parse_event(b'{"type": "metrics", "at": 1, "step": 1, "values": {"a": NaN, "b": Infinity, "c": 2}}')
    assert isinstance(event, MetricsEvent)
    assert event.values == {"a": None, "b": None, "c": 2}


def test_text_that_no_database_takes_is_made_storable() -> None:
    event = parse_event(line("notice", level="info", code="x", message="a\0b\ud800c", data={"k": ["\0"]}).encode())
    assert isinstance(event, NoticeEvent)
    assert event.message.startswith("a\N{REPLACEMENT CHARACTER}b")
    event.message.encode()
    assert event.data == {"k": ["\N{REPLACEMENT CHARACTER}"]}


def test_a_newer_engine_may_say_more() -> None:
    event = parse_event(line("checkpoint", step=3, path="checkpoints/step-00000003", colour="blue").encode())
    assert isinstance(event, CheckpointEvent)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"{", "not JSON"),
        (b'{"type": "sing", "at": 1}', "sing"),
        (b'{"type": "metrics", "at": 1, "values": {}}', "step"),
        (b"[]", "event"),
    ],
)
def test_what_is_no_event_is_refused_with_the_reason(bad: bytes, said: str) -> None:
    with pytest.raises(BadEventError, match=said):
        parse_event(bad)


def test_a_bad_line_is_reported_and_the_next_one_counts(bench: Workbench, lease: Lease, run: Run) -> None:
    with run.progress:
        run.write("{broken\n", line("metrics", step=2, values={"loss": 1.0}))
    assert bench.job(lease.job_id).step == 2
    assert bench.codes(lease.job_id) == ["bad_event"]


def test_what_is_said_last_is_not_lost_and_half_a_line_is_not_taken(bench: Workbench, lease: Lease, run: Run) -> None:
    with run.progress:
        eventually(lambda: run.progress._thread.is_alive())
        run.write(*[line("metrics", step=n, values={"loss": 1.0 / n}) for n in range(1, 501)])
        run.write('{"type": "metrics", "step": 501, "val')
    job = bench.job(lease.job_id)
    assert (job.step, job.latest_metrics) == (500, {"loss": 0.002})
    assert len(bench.rows(MetricPoint, lease.job_id, MetricPoint.step)) == 500


def test_a_resumed_run_writes_over_the_steps_that_it_repeats(bench: Workbench, lease: Lease, tmp_path: Path) -> None:
    for attempt, loss in enumerate((1.0, 2.0)):
        run = Run(bench, lease, tmp_path / str(attempt))
        with run.progress:
            run.write(
                line("metrics", step=1, values={"loss": loss}), line("metrics", step=1, values={"loss": loss + 1})
            )
    (point,) = bench.rows(MetricPoint, lease.job_id, MetricPoint.step)
    assert point.value == 3.0


def test_phases_progress_and_notices(bench: Workbench, lease: Lease, run: Run) -> None:
    with run.progress:
        run.write(
            line("phase", phase="rollout", round=1, num_rounds=3, step=4, num_steps=32),
            *[
                line("progress", phase="rollout", done=n, total=9, unit="samples", eta_seconds=9.5 - n)
                for n in range(10)
            ],
            line("notice", level="warn", code="prompt_cut", message="2 prompts were cut", data={"num": 2}),
        )
    job = bench.job(lease.job_id)
    assert (job.phase, job.phase_done, job.phase_total, job.eta_seconds) == ("rollout", 9, 9, 0.5)
    assert (job.round, job.num_rounds, job.step, job.num_steps) == (1, 3, 4, 32)
    _, phase, notice = bench.events(lease.job_id)
    assert (phase.type, phase.message) == ("phase", "Phase rollout, round 2 of 3.")
    assert phase.created_at.timestamp() == 1_800_000_000.5
    details = {"code": "prompt_cut", "remedy": "", "count": 1, "example": ""}
    assert (notice.level, notice.data) == ("warn", {**details, "num": 2})
    assert job.notices == [{**details, "message": "2 prompts were cut"}]


def test_warnings_stand_on_top_of_the_job_once_and_information_does_not(
    bench: Workbench, lease: Lease, run: Run
) -> None:
    def warning(code: str, message: str) -> str:
        return line("notice", level="warn", code=code, message=message, remedy="raise it", count=3, example="row 1")

    with run.progress:
        run.write(line("notice", level="info", code="engine_chosen", message="sampling with vllm"))
        run.write(warning("rollouts_cut", "30 of 64 are cut"), warning("stop_ids", "they differ"))
    again = Run(bench, lease, run.folder.parent / "again")
    with again.progress:
        again.write(warning("rollouts_cut", "31 of 64 are cut"))
        again.write(*[warning(f"other_{chr(97 + n % 26)}{chr(97 + n // 26)}", "x") for n in range(60)])
    notices = bench.job(lease.job_id).notices
    assert notices is not None
    assert [notice["message"] for notice in notices[:2]] == ["31 of 64 are cut", "they differ"]
    assert notices[0] == {
        "code": "rollouts_cut",
        "message": "31 of 64 are cut",
        "remedy": "raise it",
        "count": 3,
        "example": "row 1",
    }
    assert len(notices) == 50


def test_a_resumed_run_that_still_prepares_does_not_seem_to_begin_anew(sqlite_bench: Workbench, tmp_path: Path) -> None:
    lease = sqlite_bench.claimed()
    sqlite_bench.set_job(lease.job_id, step=40, num_steps=100)
    run = Run(sqlite_bench, lease, tmp_path / "run")
    with run.progress:
        run.write(line("phase", phase="preparing", round=0, num_rounds=1, step=0, num_steps=0))
    job = sqlite_bench.job(lease.job_id)
    assert (job.phase, job.step, job.num_steps) == ("preparing", 40, 100)


def test_a_rounds_diagnosis_is_stored_and_a_repeated_one_replaces_it(bench: Workbench, tmp_path: Path) -> None:
    lease = bench.claimed()
    for attempt, mass in enumerate((0.01, 0.02)):
        run = Run(bench, lease, tmp_path / str(attempt))
        with run.progress:
            report = {"num_trajectories": 64, "rollout": {"epistemic_mass": mass, "forward_kl": float("nan")}}
            run.write(*[line("diagnosis", round=n, step=32 * n, report=report) for n in (0, 1)])
    stored = bench.rows(Diagnosis, lease.job_id, Diagnosis.round)
    assert [(row.round, row.step) for row in stored] == [(0, 0), (1, 32)]
    assert stored[1].report["rollout"] == {"epistemic_mass": 0.02, "forward_kl": None}
    assert bench.codes(lease.job_id) == []


def test_answers_to_fixed_problems_are_stored_by_step(bench: Workbench, tmp_path: Path) -> None:
    lease = bench.claimed()
    for attempt, word in enumerate(("first", "second")):
        run = Run(bench, lease, tmp_path / str(attempt))
        with run.progress:
            samples = [
                {"problem_id": f"p{n}", "prompt": "1+1=", "completion": f"{word}\0", "correct": True} for n in (0, 1)
            ]
            run.write(*[line("probe_samples", step=step, samples=samples) for step in (0, 32)])
    stored = bench.rows(ProbeSample, lease.job_id, ProbeSample.step)
    assert sorted((row.step, row.position, row.problem_id) for row in stored) == [
        (0, 0, "p0"),
        (0, 1, "p1"),
        (32, 0, "p0"),
        (32, 1, "p1"),
    ]
    assert {row.completion for row in stored} == {"second\N{REPLACEMENT CHARACTER}"}
    assert bench.codes(lease.job_id) == []


def trajectories(folder: Path, num: int, refined: str = "2", problem_id: str = "p") -> str:
    row = {
        "problem_id": problem_id,
        "sample": 0,
        "prompt": "q",
        "answer": "2",
        "rollout": "1",
        "rollout_correct": False,
    }
    row |= {"refined": refined, "refined_correct": True, "rollout_tokens": 1, "refined_tokens": 1, "detail": {}}
    folder.mkdir(exist_ok=True)
    rows = [json.dumps({**row, "position": n, "token_ids": {"prompt": [1]}}) + "\n" for n in range(num)]
    (folder / "trajectories.jsonl").write_text("".join(rows))
    return line("trajectories", path="trajectories.jsonl", round=0, num=num)


def test_trajectories_are_stored_in_bulk_and_a_repeated_round_replaces_them(
    bench: Workbench, lease: Lease, tmp_path: Path
) -> None:
    for attempt, (num, refined) in enumerate(((450, "first"), (430, "second"))):
        run = Run(bench, lease, tmp_path / str(attempt))
        with run.progress:
            run.write(trajectories(run.folder, num, refined))
    stored = bench.rows(Trajectory, lease.job_id, Trajectory.position)
    assert [t.position for t in stored] == list(range(430))
    assert {t.refined for t in stored} == {"second"}


def test_a_problems_id_of_any_length_is_stored(bench: Workbench, lease: Lease, run: Run) -> None:
    long = "https://problems.example/" + "x" * 200
    with run.progress:
        sample = {"problem_id": long, "prompt": "1+1=", "completion": "2", "correct": True}
        run.write(trajectories(run.folder, 1, problem_id=long), line("probe_samples", step=0, samples=[sample]))
    stored = bench.rows(Trajectory, lease.job_id, Trajectory.position)
    stored += bench.rows(ProbeSample, lease.job_id, ProbeSample.position)
    assert [row.problem_id for row in stored] == [long[:99] + "…"] * 2
    assert bench.codes(lease.job_id) == []


def test_a_file_outside_the_run_is_not_read(sqlite_bench: Workbench, tmp_path: Path) -> None:
    lease = sqlite_bench.claimed()
    (tmp_path / "secret").write_text("{}")
    run = Run(sqlite_bench, lease, tmp_path / "run")
    run.write(line("trajectories", path="../secret", round=0, num=1))
    with pytest.raises(BadEventError, match="outside"), run.progress:
        eventually(lambda: run.progress.is_broken)


def test_checkpoints_are_handed_on_in_order(bench: Workbench, lease: Lease, run: Run) -> None:
    with run.progress:
        run.write(line("metrics", step=7, values={"loss": 1.0}))  # a checkpoint is complete some steps later
        run.write(*[line("checkpoint", step=n, path=f"checkpoints/step-{n:08d}") for n in (2, 4, 6)])
    assert run.checkpoints == [2, 4, 6]
    assert bench.job(lease.job_id).step == 7


def test_progress_of_a_superseded_attempt_stops_and_says_so(bench: Workbench, lease: Lease, run: Run) -> None:
    bench.set_job(lease.job_id, lease_token=lease.token + 1)
    run.write(line("metrics", step=1, values={"loss": 1.0}))
    with pytest.raises(LeaseLostError), run.progress:
        eventually(lambda: run.progress.is_broken)
    assert bench.job(lease.job_id).step == 0


def test_a_thousand_points_are_written_in_batches(bench: Workbench, lease: Lease, run: Run) -> None:
    names = {f"metric_{n}": math.sin(n) for n in range(20)}
    begun_at = time.monotonic()
    with run.progress:
        run.write(*[line("metrics", step=n, values=names) for n in range(50)])
    assert len(bench.rows(MetricPoint, lease.job_id, MetricPoint.step)) == 1000
    assert time.monotonic() - begun_at < 20


def test_a_commit_whose_answer_is_lost_is_not_applied_twice(
    postgres_server: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    proxy = PostgresProxy(lambda: postgres_server.port)
    bench = Workbench(postgres_url.replace(f":{postgres_server.port}/", f":{proxy.port}/"), tmp_path / "data")
    lease = bench.claimed()
    run = Run(bench, lease, tmp_path / "run")
    position = {"round": 0, "num_rounds": 1, "step": 0, "num_steps": 2}
    proxy.lose_answers_of_commits("INSERT INTO job_events", "INSERT INTO metric_points")
    with run.progress:
        for number, phase in enumerate(("rollout", "refining", "training"), start=1):
            run.write(line("phase", phase=phase, **position), line("metrics", step=number, values={"loss": 0.5}))
            time.sleep(0.2)
    assert proxy.num_lost == 2
    phases = [event.data["phase"] for event in bench.events(lease.job_id, "phase")]
    assert phases == ["rollout", "refining", "training"]
    assert [point.step for point in bench.rows(MetricPoint, lease.job_id, MetricPoint.step)] == [1, 2, 3]
    bench.close()
    proxy.stop()
