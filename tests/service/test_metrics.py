"""``GET /metrics``: what Prometheus reads of the service, and what the committed alerts and dashboard ask of it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

import worker.metrics  # noqa: F401 - registers the worker's figures
from deploy.monitoring.make_dashboard import dashboard
from service import metrics
from service.jobs.fleet import Fleet, QueueState
from tests.service.records import job_body
from tests.service.test_worker_health import add_worker

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"


def figures(client: TestClient) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the values of each figure by its labels' values."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_jobs_queues_and_workers_are_counted(client: TestClient) -> None:
    body = job_body(client)
    ids = [client.post("/jobs", json=body).json()["id"] for _ in range(3)]
    client.post(f"/jobs/{ids[0]}/cancel")
    add_worker(client, "gone", seconds=-1.0)
    add_worker(client, "host:1:a", queues=["trd-default", "night"])
    found = figures(client)
    assert found["trd_jobs"]["queued",] == 2
    assert found["trd_jobs"]["cancelled",] == 1
    assert found["trd_jobs"]["running",] == 0
    assert found["trd_queue_waiting"] == {("trd-default",): 2}
    assert found["trd_queue_running"] == {("trd-default",): 0}
    assert 0 <= found["trd_queue_oldest_seconds"]["trd-default",] < 60
    assert found["trd_workers"] == {("trd-default",): 1, ("night",): 1}
    assert found["trd_streams"] == {(): 0}


@pytest.mark.parametrize(("slow_seconds", "num_counts"), [(0.01, 1), (60.0, 3)])
def test_a_count_that_takes_long_is_kept_for_a_while(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, slow_seconds: float, num_counts: int
) -> None:
    asked: list[Fleet] = []

    def count_for_long(fleet: Fleet) -> list[QueueState]:
        asked.append(fleet)
        time.sleep(0.02)
        return []

    monkeypatch.setattr(metrics, "SLOW_SECONDS", slow_seconds)
    monkeypatch.setattr(metrics, "REST", 10_000)
    monkeypatch.setattr(Fleet, "queues", count_for_long)
    found = [figures(client) for _ in range(3)]
    assert len(asked) == num_counts
    assert found[2]["trd_requests_total"]["GET", "/metrics", "200"] == 2, "requests are always counted"


def test_requests_are_counted_by_the_template_of_their_route(client: TestClient) -> None:
    for path in ("/jobs/job_1", "/jobs/job_2", "/no/such/path/1", "/no/such/path/2", "/jobs?limit=many"):
        client.get(path)
    client.post("/jobs", json={})
    found = figures(client)
    answers = found["trd_requests_total"]
    assert answers["GET", "/jobs/{job_id}", "404"] == 2
    assert answers["GET", "unmatched", "404"] == 2
    assert answers["GET", "/jobs", "422"] == 1
    assert answers["POST", "/jobs", "422"] == 1
    assert found["trd_request_seconds_count"]["GET", "/jobs/{job_id}"] == 2
    assert not [labels for labels in answers if "job_1" in str(labels)]


def test_a_refused_key_and_a_strange_method_make_no_series_of_their_own(client: TestClient) -> None:
    client.get("/jobs/job_1", headers={"authorization": "Bearer wrong"})
    for method in ("PROPFIND", "X1", "X2"):
        client.request(method, "/jobs")
    assert set(figures(client)["trd_requests_total"]) == {("GET", "unmatched", "401"), ("other", "/jobs", "405")}


def expressions() -> Iterator[Any]:
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["summary"]
            assert rule["annotations"]["remedy"]
            yield pytest.param(rule["expr"], id=rule["alert"])
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield pytest.param(target["expr"], id=panel["title"])


@pytest.mark.parametrize("expression", list(expressions()))
def test_alerts_and_dashboard_ask_for_figures_that_exist(client: TestClient, expression: str) -> None:
    promql_parser.parse(expression)
    client.get("/jobs")
    families = text_string_to_metric_families(client.get("/metrics").text)
    of_service = {sample.name for family in families for sample in family.samples}
    of_service |= {"trd_queue_waiting", "trd_queue_running", "trd_queue_oldest_seconds", "trd_workers"}
    of_worker = set(REGISTRY._names_to_collectors)
    asked = set(re.findall(r"\btrd_\w+", expression))
    assert asked <= of_service | of_worker
    assert asked or expression.startswith("up")


def test_the_dashboard_is_the_generators() -> None:
    assert json.loads((MONITORING / "grafana.json").read_text()) == dashboard()
