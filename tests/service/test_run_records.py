"""Metrics, trajectories and evaluations, as the API shows what a worker wrote."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, text

from contract.tables import Trajectory
from service.runs import repository, token_views
from service.runs.token_views import aligned
from tests.service.records import add_evaluation, add_metrics, add_trajectory, database_of, submit


def series(client: TestClient, job_id: str, **params: Any) -> dict[str, dict[str, Any]]:
    response = client.get(f"/jobs/{job_id}/metrics", params=params)
    assert response.status_code == 200, response.text
    return {entry["name"]: entry for entry in response.json()["data"]}


def test_metrics_are_series_over_the_steps(either_client: TestClient) -> None:
    job_id = submit(either_client)
    add_metrics(either_client, job_id, "loss", {step: step / 10 for step in range(1, 21)})
    add_metrics(either_client, job_id, "grad_norm", {1: 2.0, 2: None})
    found = series(either_client, job_id)
    assert list(found) == ["grad_norm", "loss"]
    assert found["loss"]["steps"] == list(range(1, 21))
    assert found["loss"]["values"][:2] == [0.1, 0.2]
    assert not found["loss"]["is_thinned"]
    assert found["grad_norm"]["values"] == [2.0, None]
    assert len(found["loss"]["at"]) == 20
    assert list(series(either_client, job_id, names="loss")) == ["loss"]
    part = series(either_client, job_id, names="loss,other", from_step=5, to_step=7)
    assert part["loss"]["steps"] == [5, 6, 7]
    assert series(either_client, job_id, from_step=100) == {}


def test_thinning_keeps_every_stretchs_extremes(either_client: TestClient) -> None:
    job_id = submit(either_client)
    values: dict[int, float | None] = {step: math.sin(step / 50) for step in range(3000)}
    values[1234], values[2345], values[777] = 99.0, -99.0, None
    add_metrics(either_client, job_id, "loss", values)
    thinned = series(either_client, job_id, resolution=100)["loss"]
    assert (thinned["num_points"], thinned["is_thinned"]) == (3000, True)
    assert 50 <= len(thinned["steps"]) <= 101
    assert thinned["steps"] == sorted(thinned["steps"])
    kept = dict(zip(thinned["steps"], thinned["values"], strict=True))
    assert {1234: 99.0, 2345: -99.0, 777: None}.items() <= kept.items()
    for start in range(0, 3000, 60):
        stretch = [values[step] for step in range(start, start + 60)]
        finite = [value for value in stretch if value is not None]
        inside = [value for step, value in kept.items() if start <= step < start + 60 and value is not None]
        assert (min(inside), max(inside)) == (min(finite), max(finite))


def test_few_points_are_shown_whole_beside_many(client: TestClient) -> None:
    job_id = submit(client)
    add_metrics(client, job_id, "loss", {step: float(step) for step in range(500)})
    add_metrics(client, job_id, "accuracy", {0: 0.1, 499: 0.9})
    found = series(client, job_id, resolution=10)
    assert found["accuracy"]["values"] == [0.1, 0.9]
    assert not found["accuracy"]["is_thinned"]
    assert len(found["loss"]["steps"]) == 10


@pytest.mark.parametrize("params", [{"resolution": 1}, {"resolution": 10**6}, {"from_step": -1}, {"to_step": 2**31}])
def test_metric_parameters_have_bounds(client: TestClient, params: dict[str, int]) -> None:
    assert client.get(f"/jobs/{submit(client)}/metrics", params=params).status_code == 422


def add_trajectories(client: TestClient) -> str:
    job_id = submit(client)
    for position in range(12):
        verdicts = [(False, True), (True, False), (True, True), (False, False)][position % 4]
        add_trajectory(client, job_id, position, verdicts=verdicts, round=position // 6)
    return job_id


def ids(client: TestClient, job_id: str, **params: Any) -> list[str]:
    response = client.get(f"/jobs/{job_id}/trajectories", params=params)
    assert response.status_code == 200, response.text
    return [row["id"] for row in response.json()["data"]]


def test_trajectories_are_paged_by_round_and_position(either_client: TestClient) -> None:
    job_id = add_trajectories(either_client)
    everything = [f"{position // 6}:{position}" for position in range(12)]
    assert ids(either_client, job_id) == everything
    first = either_client.get(f"/jobs/{job_id}/trajectories", params={"limit": 5}).json()
    assert first["has_more"]
    assert ids(either_client, job_id, limit=100, after=first["data"][-1]["id"]) == everything[5:]
    assert ids(either_client, job_id, round=1) == everything[6:]
    assert ids(either_client, job_id, round=1, after="1:9") == everything[10:]
    assert ids(either_client, job_id, round=1, after="0:3") == everything[6:]
    assert ids(either_client, job_id, round=0, after="1:3") == []


def test_trajectories_are_filtered_by_outcome(either_client: TestClient) -> None:
    job_id = add_trajectories(either_client)
    assert ids(either_client, job_id, outcome="fail_to_pass") == ["0:0", "0:4", "1:8"]
    both = ids(either_client, job_id, outcome=["fail_to_pass", "pass_to_fail"], round=0)
    assert both == ["0:0", "0:1", "0:4", "0:5"]
    counts = either_client.get(f"/jobs/{job_id}/trajectories/outcomes").json()["data"]
    assert {"object": "outcome_count", "round": 0, "outcome": "fail_to_pass", "num_trajectories": 2} in counts
    assert sum(count["num_trajectories"] for count in counts) == 12


def test_a_trajectory_shows_where_rollout_and_refinement_part(client: TestClient) -> None:
    job_id = add_trajectories(client)
    row = client.get(f"/jobs/{job_id}/trajectories/0:0").json()
    assert (row["rollout"], row["refined"], row["parts_at"]) == ("1 + 1 is 3", "1 + 1 is 2", 9)
    assert (row["outcome"], row["rollout_correct"], row["refined_correct"]) == ("fail_to_pass", False, True)
    add_trajectory(client, job_id, 50, verdicts=(True, None))
    plain = client.get(f"/jobs/{job_id}/trajectories/0:50").json()
    assert (plain["refined"], plain["parts_at"], plain["outcome"]) == (None, None, "right")
    for wrong in ("0:99", "0", "a:b", "1:" + "9" * 30):
        assert client.get(f"/jobs/{job_id}/trajectories/{wrong}").status_code == 404
    assert client.get(f"/jobs/{job_id}/trajectories?after=0").status_code == 422
    assert client.get(f"/jobs/{job_id}/trajectories?outcome=better").status_code == 422


def test_trajectories_are_filtered_by_step_length_and_text(either_client: TestClient) -> None:
    job_id = submit(either_client)
    for position in range(6):
        tokens = {"rollout_tokens": 10 * position, "refined_tokens": 25}
        texts = {"prompt": f"Problem {position}", "rollout": "100% of_it" if position == 3 else "none"}
        add_trajectory(either_client, job_id, position, step=1 + position // 2, **tokens, **texts)
    add_trajectory(either_client, job_id, 6, verdicts=(True, None), rollout_tokens=7)
    assert ids(either_client, job_id, step=2) == ["0:2", "0:3"]
    assert ids(either_client, job_id, min_tokens=30) == ["0:3", "0:4", "0:5"]
    assert ids(either_client, job_id, max_tokens=24) == ["0:6"], "a missing refinement has no length"
    assert ids(either_client, job_id, min_tokens=26, max_tokens=40, step=2) == ["0:3"]
    assert ids(either_client, job_id, text="PROBLEM 4") == ["0:4"]
    assert ids(either_client, job_id, text="0% of_i") == ["0:3"], "the pattern's signs are plain text"
    assert ids(either_client, job_id, text="0%of_i") == []
    row = either_client.get(f"/jobs/{job_id}/trajectories/0:3").json()
    assert (row["step"], row["tokens"], row["alignment"]) == (2, None, None)


def test_a_search_reads_a_bounded_number_of_texts(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "MAX_SEARCHED", 5)
    job_id = submit(client)
    for position in range(12):
        add_trajectory(client, job_id, position, rollout="found" if position in (1, 11) else "other")
    path = f"/jobs/{job_id}/trajectories?text=found"
    pages = [client.get(path).json()]
    while pages[-1]["has_more"]:
        pages.append(client.get(f"{path}&after={pages[-1]['searched_to']}").json())
    assert [[row["id"] for row in page["data"]] for page in pages] == [["0:1"], [], ["0:11"]]
    assert [page["searched_to"] for page in pages] == ["0:4", "0:9", None]


def test_one_trajectory_is_shown_token_by_token_and_aligned(either_client: TestClient) -> None:
    job_id = submit(either_client)
    likely = {"token": 4, "student": [["3", 0.9], ["2", 0.1]], "teacher": [["2", 0.8]]}
    detail = {
        "lengths": {"rollout": [1, 2, 2, 4, 1, 0], "refined": [1, 2, 2, 4, 1, 0]},
        "alternatives": {"rollout": [likely], "refined": None},
        "first_wrong_step": [3, 5],
    }
    kl = {"rollout": [0.0, 0.1, 0.0, None, 3.0, 0.0], "refined": [0.0] * 6}
    add_trajectory(
        either_client, job_id, 0, token_kl=kl, token_detail=detail, rollout="1 + 1 is 3", refined="1 + 1 is 2"
    )
    path = f"/jobs/{job_id}/trajectories/0:0?alignment=true"
    shown = either_client.get(f"{path}&tokens=true").json()
    assert shown["tokens"]["rollout"]["tokens"] == ["1", " +", " 1", " is ", "3", ""]
    assert shown["tokens"]["rollout"]["kl"] == kl["rollout"]
    assert shown["tokens"]["rollout"]["alternatives"][0]["teacher"] == [{"text": "2", "probability": 0.8}]
    assert (shown["tokens"]["refined"]["alternatives"], shown["tokens"]["first_wrong_step"]) == (None, [3, 5])
    assert shown["alignment"]["unit"] == "token"
    assert [(s["op"], s["rollout"], s["refined"]) for s in shown["alignment"]["stretches"]] == [
        ("equal", [0, 4], [0, 4]),
        ("replaced", [4, 5], [4, 5]),
        ("equal", [5, 6], [5, 6]),
    ]
    add_trajectory(either_client, job_id, 1, rollout="so a, b", refined="so a, c, b")
    plain = either_client.get(f"/jobs/{job_id}/trajectories/0:1?alignment=true&tokens=true").json()
    assert plain["tokens"] is None
    assert (plain["alignment"]["unit"], plain["alignment"]["refined"]) == ("word", ["so", " a", ",", " c", ",", " b"])
    assert {s["op"] for s in plain["alignment"]["stretches"]} == {"equal", "added"}


@pytest.mark.parametrize(
    "filters", [{}, {"outcomes": ["fail_to_pass"]}, {"step": 3}, {"min_tokens": 9}, {"round": 1, "max_tokens": 5}]
)
def test_pages_are_chosen_from_an_index_alone(client: TestClient, filters: dict[str, Any]) -> None:
    """A row holds texts of any length: a filter that read rows would read them all."""
    wanted = repository.TrajectoryFilter("job_1", **filters)
    query = wanted.select_keys().where(repository.beyond(wanted, (1, 2), is_backward=False))
    query = query.order_by(Trajectory.round, Trajectory.position).limit(21)
    with database_of(client).read() as session:
        sql = str(query.compile(session.get_bind(), compile_kwargs={"literal_binds": True}))
        plan = [row.detail for row in session.execute(text(f"EXPLAIN QUERY PLAN {sql}"))]
    assert len(plan) == 1, "no sort"
    assert "COVERING INDEX" in plan[0]


def test_lengths_are_read_from_the_index_that_holds_them(client: TestClient) -> None:
    with database_of(client).read() as session:
        seen: list[tuple[str, Any]] = []
        event.listen(session.connection(), "before_cursor_execute", lambda *given: seen.append(given[2:4]))
        repository.lengths(session, "job_1")
        statement, values = seen[0]
        plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
    assert "COVERING INDEX ix_trajectories_filters" in plan[0].detail


def test_new_points_are_found_without_reading_the_others(client: TestClient) -> None:
    job_id = submit(client)
    for name in ("loss", "a", "grad_norm"):
        add_metrics(client, job_id, name, dict.fromkeys(range(1, 5), 0.5))
    with database_of(client).read() as session:
        names = repository.metric_names(session, job_id)
        seen: list[tuple[str, Any]] = []
        event.listen(session.connection(), "before_cursor_execute", lambda *given: seen.append(given[2:4]))
        repository.metric_points(session, repository.MetricRange(job_id, names, from_step=4))
        statement, values = seen[0]
        plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
    assert names == ["a", "grad_norm", "loss"]
    assert "(job_id=? AND name=? AND step>?)" in plan[0].detail
    assert [one["steps"] for one in series(client, job_id, from_step=4).values()] == [[4], [4], [4]]


def words(rng: random.Random) -> list[str]:
    return rng.choices(["wait", " ,", " the", " 12", "\n", " <b>", ""], k=rng.randrange(12))


def test_an_alignment_goes_through_both_texts() -> None:
    rng = random.Random(0)
    for _ in range(300):
        left, right = words(rng), words(rng)
        found = aligned(left, right)
        assert [unit for s in found for unit in left[slice(*s.rollout)]] == left
        assert [unit for s in found for unit in right[slice(*s.refined)]] == right
        for one in found:
            is_same = left[slice(*one.rollout)] == right[slice(*one.refined)]
            assert is_same or one.op != "equal"
    lone = aligned(["aaaa", ",", "bbbb"], ["cccc", ",", "dddd"])
    assert [stretch.op for stretch in lone] == ["replaced"], "a lone comma is no common text"


def test_texts_of_any_length_are_aligned_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """16,000 tokens of a text that repeats itself, which makes other algorithms quadratic."""
    left = ["wait", " no", ",", " 12"] * 4000
    right = [*left[:100], "so", *left[101:15000]]
    started_at = time.monotonic()
    found = aligned(left, right)
    assert time.monotonic() - started_at < 5
    assert sum(s.rollout[1] - s.rollout[0] for s in found if s.op == "equal") >= 14990
    monkeypatch.setattr(token_views, "MAX_PRODUCT", 10)
    ends = aligned(["a", "b", "c", "d"], ["a", "x", "y", "d"])
    assert [(s.op, s.rollout, s.refined) for s in ends] == [
        ("equal", (0, 1), (0, 1)),
        ("replaced", (1, 3), (1, 3)),
        ("equal", (3, 4), (3, 4)),
    ]


def test_the_kl_of_each_token_is_shown_on_request(either_client: TestClient) -> None:
    job_id = submit(either_client)
    kl = {"rollout": [0.5, None, 2.0], "refined": [0.1, 0.2]}
    add_trajectory(either_client, job_id, 0, token_kl=kl, parts_at_token=1)
    add_trajectory(either_client, job_id, 1, token_kl={"rollout": [1.0], "refined": None}, verdicts=(True, None))
    add_trajectory(either_client, job_id, 2)
    path = f"/jobs/{job_id}/trajectories"
    plain = either_client.get(path).json()["data"]
    assert [(row["per_token_kl"], row["parts_at_token"]) for row in plain] == [(None, 1), (None, None), (None, None)]
    shown = either_client.get(path, params={"per_token_kl": True}).json()["data"]
    assert [row["per_token_kl"] for row in shown] == [kl, {"rollout": [1.0], "refined": None}, None]
    assert either_client.get(f"{path}/0:0?per_token_kl=true").json()["per_token_kl"] == kl
    assert either_client.get(f"{path}/0:0").json()["per_token_kl"] is None


def test_evaluations_come_by_step_with_their_intervals(either_client: TestClient) -> None:
    job_id = submit(either_client)
    add_evaluation(either_client, job_id, 32, 0.5)
    add_evaluation(either_client, job_id, 0, 0.2)
    rows = either_client.get(f"/jobs/{job_id}/evaluations").json()["data"]
    assert [row["step"] for row in rows] == [0, 32]
    assert rows[0]["avg_at_k"] == 0.2
    assert rows[0]["avg_low"] == pytest.approx(0.1)
    assert (rows[0]["k"], rows[0]["num_problems"], rows[0]["dataset"]) == (4, 10, "holdout")
