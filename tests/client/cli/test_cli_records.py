"""What a run wrote down, on a terminal: events, curves, trajectories, two jobs beside one another."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from client import Client
from contract.events import NewEvent, append_events
from contract.job_state import JobStatus
from contract.retention import RecordKind, complete, remove_batch
from contract.tables import Diagnosis, ProbeSample
from tests.client.cli.conftest import Run
from tests.client.conftest import RunningService
from tests.service.engine_reports import engine_report
from tests.service.records import add_evaluation, add_events, add_metrics, add_trajectory, finish_job, set_job


def test_events_are_listed_filtered_and_followed(run: Run, service: RunningService, job_id: str) -> None:
    add_events(service.database, job_id, 3)
    with service.database.write() as session:
        failure = NewEvent("notice", "It broke.", {"traceback": "Traceback: line 1"}, level="error")
        append_events(session, job_id, failure)
    assert [line[10:] for line in run("logs", job_id).out.splitlines()][:3] == [
        "The job is queued.",
        "number 0",
        "number 1",
    ]
    grave = run("logs", job_id, "--level", "warn").out.splitlines()
    assert [grave[0][10:], grave[1]] == ["It broke.", "Traceback: line 1"]
    assert [row["sequence"] for row in run("logs", job_id, "--tail", "2", "--json").json["data"]] == [4, 5]
    finish_job(service.database, job_id)
    followed = run("logs", job_id, "--follow", "--json")
    assert [line["sequence"] for line in followed.lines] == [1, 2, 3, 4, 5, 6]
    assert run("logs", job_id, "-f", "--tail", "1").out.count("\n") == 1


def test_records_that_the_retention_policy_removed_are_not_said_to_be_missing(
    run: Run, service: RunningService, job_id: str
) -> None:
    add_events(service.database, job_id, 3)
    add_metrics(service.database, job_id, "loss", {1: 0.5})
    add_trajectory(service.database, job_id, 0)
    finish_job(service.database, job_id)
    set_job(service.database, job_id, finished_at=datetime.now(UTC) - timedelta(days=9))
    rows = {line.split()[0]: line.split() for line in run("retention", "--metrics-days", "8").out.splitlines()[1:]}
    assert rows["metrics"][1:4] == ["8", "1", "1"]
    assert rows["events"][1:] == ["kept", "forever"]
    assert run("retention", "--events-days", "8", "--json").json["kinds"][0]["num_rows"] == 4
    assert run("retention", "--events-days", "0").code == 2
    for kind in RecordKind:
        with service.database.write() as session:
            assert remove_batch(session, kind, 1.0, job_id) is not None
            complete(session, kind, 1.0, job_id)
    for command in (("metrics", job_id), ("metrics", job_id, "loss"), ("trajectories", job_id)):
        assert "were removed by the service's retention policy" in run(*command).out
    logs = run("logs", job_id)
    assert "the events before number 5 were removed" in logs.err
    assert logs.out.count("\n") == 1


def test_curves_are_listed_and_drawn(run: Run, service: RunningService, job_id: str) -> None:
    assert "no metrics yet" in run("metrics", job_id).out
    add_metrics(service.database, job_id, "loss", {step: 3.0 - step / 10 for step in range(1, 21)} | {21: None})
    add_metrics(service.database, job_id, "grad_norm", {1: 0.5})
    rows = {line.split()[0]: line.split() for line in run("metrics", job_id).out.splitlines()[1:]}
    assert rows["loss"][1:6] == ["21", "2.9", "1", "1", "2.9"]
    assert rows["grad_norm"][1:] == ["1", "0.5", "0.5", "0.5", "0.5"]
    drawing = run("metrics", job_id, "grad_norm", "loss", "--height", "10").out
    assert drawing.index("grad_norm") < drawing.index("loss")
    assert "\x1b" not in drawing, "no colour codes in a file"
    assert "2.9" in drawing
    result = run("metrics", job_id, "loss", "--from-step", "20", "--json").json["data"]
    assert (result[0]["steps"], result[0]["values"]) == ([20, 21], [1.0, None])
    missing = run("metrics", job_id, "los")
    assert (missing.code, "there are: grad_norm, loss" in missing.err) == (4, True)


def test_trajectories_stand_side_by_side(run: Run, service: RunningService, job_id: str) -> None:
    assert "no trajectories yet" in run("trajectories", job_id).out
    add_trajectory(service.database, job_id, 0)
    add_trajectory(service.database, job_id, 1, verdicts=(False, None), rollout="[bold]not markup[/]")
    shown = run("trajectories", job_id).out
    (line,) = [line for line in shown.splitlines() if "1 + 1 is 3" in line]
    assert line.split("  ")[0].strip() == "1 + 1 is 3"
    assert line.rstrip().endswith("1 + 1 is 2")
    assert "y_o, the rollout: wrong" in shown
    assert "y_r, refined: right" in shown
    assert "[bold]not markup[/]" in shown
    assert "2 in all: 1 fail_to_pass, 1 wrong" in shown
    only = run("trajectories", job_id, "--outcome", "wrong", "--round", "1", "--json").json
    assert [row["id"] for row in only["data"]] == ["0:1"]
    assert [row["num_trajectories"] for row in only["outcomes"]] == [1, 1]
    assert run("trajectories", job_id, "0:0", "--json").json["data"][0]["refined"] == "1 + 1 is 2"
    assert run("trajectories", job_id, "9:9").code == 4


def test_a_diagnosis_is_shown_by_round(run: Run, service: RunningService, job_id: str) -> None:
    assert "no diagnosis yet" in run("diagnosis", job_id).out
    report = engine_report()
    for round_index in (0, 1):
        report["rollout"]["forward_kl"] = None if round_index else 0.25
        with service.database.write() as session:
            row = Diagnosis(job_id=job_id, round=round_index, step=0, report=report, created_at=datetime.now(UTC))
            session.add(row)
    shown = run("diagnosis", job_id)
    lines = [line.split() for line in shown.out.splitlines()[1:]]
    assert [line[:3] for line in lines[:3]] == [
        ["1", "y_o,", "vanilla"],
        ["1", "y_r,", "refine"],
        ["1", "y_r,", "vanilla"],
    ]
    assert (lines[0][4], lines[3][4]) == ("0.25", "—")
    assert f"{1000 * report['refined']['epistemic_mass']:.2f}" in lines[1]
    assert "1 of 1 rollouts have a wrong step" in shown.err
    assert [row["round"] for row in run("diagnosis", job_id, "--json").json["data"]] == [0, 1]


def test_the_answers_to_fixed_problems_are_shown_by_problem(run: Run, service: RunningService, job_id: str) -> None:
    assert "no samples yet" in run("samples", job_id).out
    with service.database.write() as session:
        for step, position in ((0, 0), (0, 1), (9, 0), (9, 1)):
            texts = {"problem_id": str(position), "prompt": f"problem {position}", "completion": f"[{step}]"}
            row = ProbeSample(job_id=job_id, step=step, position=position, correct=step > 0, **texts)
            row.created_at = datetime.now(UTC)
            session.add(row)
    lines = [line.split() for line in run("samples", job_id).out.splitlines() if line]
    assert lines[:4] == [["problem", "0"], ["step", "completion"], ["0", "wrong", "[0]"], ["9", "right", "[9]"]]
    assert [row["id"] for row in run("samples", job_id, "--step", "9", "--json").json["data"]] == ["9:0", "9:1"]


def test_two_jobs_are_compared(run: Run, trd: Client, service: RunningService, job_id: str) -> None:
    other = trd.jobs.clone(job_id, {"optim": {"learning_rate": 0.5}, "name": "faster"}).id
    for number, one in enumerate((job_id, other)):
        add_evaluation(service.database, one, 0, 0.2)
        add_evaluation(service.database, one, 9, 0.5 + number / 10)
        add_metrics(service.database, one, "loss", {1: 2.0, 2: 1.0 - number / 10})
        set_job(service.database, one, latest_metrics={"loss": 1.0 - number / 10, "same": 1.0})
        finish_job(service.database, one, JobStatus.SUCCEEDED)
    shown = run("compare", job_id, other).out
    rows = {line.split("  ")[0]: line for line in shown.splitlines()}
    assert "5e-06" in rows["optim.learning_rate"]
    assert "0.5" in rows["optim.learning_rate"]
    assert "50.0 %" in rows["avg@k after"]
    assert "60.0 %" in rows["avg@k after"]
    assert "0.9" in rows["loss"]
    assert "same" not in rows
    assert f"faster …{other[-6:]}" in shown, "the chart's legend"
    result = run("compare", job_id, other, "--json").json
    assert result["spec_differences"] == {"optim.learning_rate": [5e-06, 0.5]}
    assert [row["job"]["id"] for row in result["jobs"]] == [job_id, other]
    assert "the specs are the same" in run("compare", job_id, job_id).out


def test_a_link_to_a_place_is_printed_even_if_no_tab_opens_it(run: Run, service: RunningService, job_id: str) -> None:
    add_trajectory(service.database, job_id, 0)
    done = run("view", job_id, "0:0", "--token", "2", "--text", "is 3", "--wait", "0.3")
    assert (done.code, "No tab of" in done.err) == (4, True)
    assert done.out.strip() == f"{service.url}/ui/jobs/{job_id}/trajectories/0:0#token=rollout:2&text=is+3"
    page = run("view", job_id, "--page", "events", "--wait", "0", "--json")
    assert (page.code, page.json["url"]) == (0, f"{service.url}/ui/jobs/{job_id}/events")
    assert run("view", job_id, "0:9").code == 4
