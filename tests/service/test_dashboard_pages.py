"""The pages as text: what they say, and what they let through. tests/browser opens them in Chromium."""

from __future__ import annotations

import html
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from sqlalchemy import delete

from contract.events import NewEvent, append_events
from contract.ids import JOB_PREFIX, first_id
from contract.job_state import JobStatus, Phase
from contract.tables import Attempt, JobEvent
from contract.views.jobs import AttemptView
from service.auth import SIGN_IN_PATH
from service.bodies import JsonRoute
from service.dashboard.specs import differences, spec_rows
from service.dashboard.timeline import timeline
from service.jobs.fleet import Place
from service.jobs.schemas import job_view
from tests.service.conftest import ADMIN_KEY, MakeClient
from tests.service.engine_reports import engine_report
from tests.service.finished_job import add_finished_job
from tests.service.records import add_diagnosis, add_metrics, context_of, database_of, set_job, submit
from tests.service.test_access import new_key

HTML = {"accept": "text/html"}
TESTBED = Path(__file__).parents[2] / "testbed" / "models"
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def with_job(make_client: MakeClient, database_url: str, tmp_path: Path) -> tuple[TestClient, str]:
    client = make_client(database_url, models=f"{TESTBED}/*")
    return client, add_finished_job(client, database_of(client), tmp_path / "storage", name="Sums", tags=["a"])


def test_every_page_of_a_job_is_rendered_on_both_databases(with_job: tuple[TestClient, str]) -> None:
    client, job = with_job
    set_job(client, job, step=2, num_steps=2)
    other = client.post(f"/jobs/{job}/clone", json={"rounds": 2, "name": "<i>Clone</i>"}).json()["id"]
    said = {
        "/": ["Sums", "succeeded", "no. 1", "&lt;i&gt;Clone&lt;/i&gt;", "<polyline"],
        f"/ui/jobs/{job}": ["60.0 %", "avg@k", "The run is over."],
        f"/ui/jobs/{job}/diagnosis": ["fail → pass", "Diagnosis of round 1"],
        f"/ui/jobs/{job}/checkpoints": ["model/model.safetensors", "from_pretrained", "trd download"],
        f"/ui/jobs/{job}/events": ["The run is over."],
        f"/ui/jobs/{job}/spec": ["Differs from the defaults", "Number of rounds"],
        f"/ui/compare?job={job}&job={other}": ["rounds", "Their specs differ in"],
        "/ui/compare": ["Choose up to six jobs"],
        "/ui/new": ["Dry run", "optim"],
        f"/ui/new?from_job={job}": [job, "exact"],
        "/ui/system": ["Queues", "SQLite", "tiny-student", "Make a key"],
    }
    if not database_of(client).is_sqlite:
        said["/ui/system"][1] = "PostgreSQL"
    for path, words in said.items():
        response = client.get(path, headers=HTML)
        assert response.status_code == 200, (path, response.text[:300])
        assert [word for word in words if word not in response.text] == [], path
        assert re.findall(r"<script(?![^>]* src=)|\sstyle=|\son\w+=|javascript:", response.text) == [], path
        for address in re.findall(r"""(?:src|href)="(/ui/static/[^"]+)""", response.text):
            assert client.get(address).status_code == 200, address


def test_a_stranger_finds_no_page_of_the_job(with_job: tuple[TestClient, str]) -> None:
    client, job = with_job
    stranger = {**HTML, **new_key(client, "stranger", "admin")}
    for part in ("", "/changes", "/sampler-gaps", "/diagnosis", "/checkpoints", "/events", "/spec"):
        assert client.get(f"/ui/jobs/{job}{part}", headers=stranger).status_code == 404
    for path in (f"/ui/compare?job={job}", f"/ui/new?from_job={job}"):
        assert client.get(path, headers=stranger).status_code == 404
    assert job not in client.get("/", headers=stranger).text
    set_job(client, job, status=JobStatus.RUNNING, lease_owner="gpu-1")
    assert job not in client.get("/ui/system", headers={**HTML, **new_key(client, "stranger")}).text
    assert job in client.get("/ui/system", headers=HTML).text


def test_the_list_sends_only_rows_that_changed(client: TestClient) -> None:
    first, second = submit(client), submit(client)
    news = client.post("/ui/jobs/changes", json={}).json()
    assert news["order"] == [second, first]
    seen = {id: re.findall(r'data-version="(\w+)"', html)[0] for id, html in news["rows"].items()}
    assert client.post("/ui/jobs/changes", json=seen).json()["rows"] == {}
    set_job(client, first, status=JobStatus.RUNNING, step=3, latest_metrics={"loss": 0.25})
    add_metrics(client, first, "loss", {1: 0.5, 2: None, 3: 0.25})
    changed = client.post("/ui/jobs/changes", json=seen).json()["rows"]
    assert set(changed) == {first, second}, "the other one is next in the queue now"
    assert "0.25" in changed[first]
    only = client.post("/ui/jobs/changes?status=running", json={}).json()
    assert only["order"] == [first]


def test_the_overview_sends_only_what_is_new(client: TestClient) -> None:
    job = submit(client)
    all_of_it = client.get(f"/ui/jobs/{job}/changes").json()
    assert "queued" in all_of_it["summary"]
    known = {"version": all_of_it["version"], "after": all_of_it["num_events"]}
    nothing = client.get(f"/ui/jobs/{job}/changes", params=known).json()
    assert (nothing["summary"], nothing["events"]) == (None, [])
    client.post(f"/jobs/{job}/cancel")
    news = client.get(f"/ui/jobs/{job}/changes", params=known).json()
    assert "cancelled" in news["summary"]
    assert len(news["events"]) == 1
    assert news["is_over"]


def test_pages_go_on_from_the_last_job(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.dashboard.jobs.NUM_ROWS", 2)
    ids = [submit(client, tags=["x"]) for _ in range(3)]
    first = client.get("/?tag=x", headers=HTML).text
    (target,) = re.findall(r'rel="next" href="([^"]+)"', first)
    second = client.get(target.replace("&amp;", "&"), headers=HTML).text
    assert [id in first for id in ids] == [False, True, True]
    assert [id in second for id in ids] == [True, False, False]


def test_the_list_is_filtered_by_its_address_and_an_empty_field_filters_nothing(client: TestClient) -> None:
    ids = [submit(client, name=name) for name in ("First sums", "second SUMS", "other")]
    with context_of(client).database.write() as session:
        session.execute(delete(JobEvent))  # which hold the ids that change
    for id, day in zip(ids, (1, 2, 3), strict=True):
        set_job(client, id, created_at=START.replace(day=day), id=first_id(JOB_PREFIX, START.replace(day=day)))
    for query, names in (
        ("mode=&tag=&name=&since=&until=", ["First sums", "second SUMS", "other"]),
        ("name=sums", ["First sums", "second SUMS"]),
        ("name=sums&since=2026-01-02", ["second SUMS"]),
        ("since=2026-01-02&until=2026-01-02", ["second SUMS"]),
        ("until=2026-01-02&mode=trd", ["First sums", "second SUMS"]),
        ("until=9999-12-31&since=0001-01-01&name=other", ["other"]),
    ):
        shown = client.get(f"/?{query}", headers=HTML).text
        assert [name for name in ("First sums", "second SUMS", "other") if f">{name}</a>" in shown] == names, query
    assert client.get("/?since=monday", headers=HTML).status_code == 422


def test_a_timeline_shows_phases_waits_and_lost_attempts(client: TestClient) -> None:
    job = submit(client)
    set_job(client, job, created_at=START, status=JobStatus.SUCCEEDED, finished_at=START + timedelta(seconds=100))
    view = job_view(context_of(client).jobs.find("admin", job), Place())

    def at(seconds: float) -> datetime:
        return START + timedelta(seconds=seconds)

    def attempt(number: int, status: str, begin: float, end: float) -> AttemptView:
        return AttemptView.of(
            Attempt(number=number, worker="w", status=status, started_at=at(begin), finished_at=at(end))
        )

    phases = [(at(15), "rollout"), (at(20), "training"), (at(65), "training"), (at(90), "evaluating")]
    line = timeline(view, [attempt(1, "lost", 10, 40), attempt(2, "succeeded", 60, 100)], phases)
    assert dict(line.totals) == {
        "waiting": 30, Phase.PREPARING: 10, Phase.ROLLOUT: 5, Phase.TRAINING: 45, Phase.EVALUATING: 10
    }  # fmt: skip
    assert [(kind, round(left), round(width)) for kind, left, width in line.drawn] == [
        ("waiting", 0, 100), ("preparing", 100, 50), ("rollout", 150, 50), ("training", 200, 200),
        ("waiting", 400, 200), ("preparing", 600, 50), ("training", 650, 250), ("evaluating", 900, 100),
    ]  # fmt: skip
    assert [one.number for one in line.lost] == [1]


def test_the_timeline_has_the_phases_behind_thousands_of_other_events(client: TestClient) -> None:
    job = submit(client)
    attempt = Attempt(job_id=job, number=1, worker="w", lease_token=1, status="running", started_at=START)
    with context_of(client).database.write() as session:
        session.add(attempt)
        append_events(session, job, *[NewEvent("notice", "n", {}, at=START) for _ in range(4000)])
        append_events(session, job, NewEvent("phase", "p", {"phase": "refining"}, at=START + timedelta(seconds=5)))
    set_job(client, job, created_at=START, status=JobStatus.RUNNING)
    assert "refining" in client.get(f"/ui/jobs/{job}", headers=HTML).text


def test_a_page_has_the_gaps_of_all_rounds_and_the_report_of_one(with_job: tuple[TestClient, str]) -> None:
    client, job = with_job
    known = client.get(f"/ui/jobs/{job}/sampler-gaps").json()["values"]
    for round in (7, 8, 9):
        add_diagnosis(client, job, round, {**engine_report(), "sampler_gap": None if round == 8 else round / 4})
    assert client.get(f"/ui/jobs/{job}/sampler-gaps").json()["values"] == [*known, 1.75, 2.25]
    for query, shown in (("", 10), ("?round=8", 9), ("?round=100", 10)):
        assert f"Diagnosis of round {shown}<" in client.get(f"/ui/jobs/{job}/diagnosis{query}", headers=HTML).text


def test_a_long_timeline_has_few_rectangles(client: TestClient) -> None:
    job = submit(client)
    end = START + timedelta(hours=10)
    set_job(client, job, created_at=START, status=JobStatus.SUCCEEDED, finished_at=end)
    view = job_view(context_of(client).jobs.find("admin", job), Place())
    only = AttemptView.of(Attempt(number=1, worker="w", status="succeeded", started_at=START, finished_at=end))
    phases = [(START + timedelta(seconds=9 * i), ("rollout", "training")[i % 2]) for i in range(4000)]
    drawn = list(timeline(view, [only], phases).drawn)
    assert len(drawn) <= 1001
    assert sum(width for _, _, width in drawn) == pytest.approx(1000)


def test_a_spec_is_compared_with_its_defaults(client: TestClient) -> None:
    job = submit(client, rounds=2, optim={"learning_rate": 1e-3})
    rows = {row.path: row for row in spec_rows(client.get(f"/jobs/{job}").json()["spec"])}
    changed = {path for path, row in rows.items() if not row.is_default}
    assert {"rounds", "optim.learning_rate", "mode", "student", "dataset"} <= changed
    assert "seed" not in changed
    assert (rows["rounds"].value, rows["rounds"].default) == ("2", "1")
    assert [path for path, row in rows.items() if not row.help and "." in path and path.count(".") < 3] == []


@pytest.mark.parametrize("body", ['{"job": 1}', "[]", "{", '{"job": NaN}', "{" + '"":1,' * 100_000 + '"a":1}'])
def test_a_wrong_body_of_a_script_is_refused(client: TestClient, body: str) -> None:
    refused = client.post("/ui/jobs/changes", content=body, headers={"content-type": "application/json"})
    assert refused.status_code == 422
    assert refused.json()["error"]["type"] == "invalid_request_error"


def test_every_json_body_is_parsed_within_limits(client: TestClient) -> None:
    """FastAPI's own parser would read it on the event loop, whatever it holds."""
    with_body = [route for route in client.app.routes if isinstance(route, APIRoute) and route.body_field is not None]  # type: ignore[attr-defined]
    assert {route.path for route in with_body if not isinstance(route, JsonRoute)} == {SIGN_IN_PATH}, "a form"


def test_specs_differ_in_fields_and_not_in_names() -> None:
    one = {"name": "a", "rounds": 1, "optim": {"learning_rate": 0.1}}
    two = {"name": "b", "rounds": 1, "optim": {"learning_rate": 0.2}}
    assert [(path, values) for path, values, _ in differences([one, two])] == [("optim.learning_rate", ["0.1", "0.2"])]


def test_the_form_is_filled_in_so_that_it_makes_the_same_job(client: TestClient) -> None:
    """What `new_job.js` reads from the inputs, with the JSON below them, is the spec of the original."""
    given = {"rounds": 3, "lora": None, "metadata": {"k": "v"}, "loss": {"token_clip": 0.2}, "name": "N"}
    job = submit(client, **given)
    original = client.get(f"/jobs/{job}").json()["spec"]
    form = client.get(f"/ui/new?from_job={job}", headers=HTML).text
    rest = json.loads(re.findall(r'<textarea id="rest"[^>]*>(.*?)</textarea>', form, re.S)[0].replace("&#34;", '"'))
    made = {"mode": "trd", "student": "small", "teacher": "small-teacher", "dataset": original["dataset"], **rest}
    for path, value in re.findall(r'<input id="f-[^"]+" data-path="([^"]+)" data-kind="number" value="([^"]+)"', form):
        *parents, name = path.split(".")
        node = made
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = float(value)
    shown = client.post("/jobs?dry_run=true", json=made)
    assert shown.status_code == 200, shown.text
    again = shown.json()["spec"]
    differing = {key for key in original if again[key] != original[key]} - {"name"}
    assert differing == set()


@pytest.mark.parametrize("metadata", [{"a": "1", "a.b": "2"}, {"a": "[" * 100_000}, {"a" + ".a" * 5000: "1"}])
def test_the_form_is_filled_in_with_any_metadata(client: TestClient, metadata: dict[str, str]) -> None:
    """Names with dots are no paths, and texts are no JSON."""
    form = client.get(f"/ui/new?from_job={submit(client, metadata=metadata)}", headers=HTML)
    assert form.status_code == 200
    (rest,) = re.findall(r'<textarea id="rest"[^>]*>(.*?)</textarea>', form.text, re.S)
    assert json.loads(html.unescape(rest))["metadata"] == metadata


def test_a_key_is_needed_for_a_new_job_that_may_submit(client: TestClient) -> None:
    refused = client.get("/ui/new", headers={**HTML, **new_key(client, "ann", "read")})
    assert refused.status_code == 403
    assert "needs a key with scope submit" in refused.text
    assert ADMIN_KEY not in refused.text
