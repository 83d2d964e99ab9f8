"""A round's diagnosis: what the engine reported is what the API shows, field by field."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient

from contract.tables import Diagnosis
from contract.views.diagnosis import DiagnosisReport
from tests.service.engine_reports import engine_report
from tests.service.records import database_of, submit


def add_diagnosis(client: TestClient, job_id: str, round_index: int, report: dict[str, Any]) -> None:
    with database_of(client).write() as session:
        row = Diagnosis(job_id=job_id, round=round_index, step=8 * round_index, report=report)
        row.created_at = datetime.now(UTC)
        session.add(row)


def test_the_engines_report_is_shown_whole(either_client: TestClient) -> None:
    job_id, report = submit(either_client), engine_report()
    assert report["first_wrong_step"]["num_wrong"] == report["parting"]["num_fail_to_pass"] == 1
    add_diagnosis(either_client, job_id, 0, report)
    (shown,) = either_client.get(f"/jobs/{job_id}/diagnosis").json()["data"]
    assert (shown["object"], shown["round"], shown["step"]) == ("diagnosis", 0, 0)
    assert shown["report"] == report


def test_figures_that_could_not_be_computed_are_null(client: TestClient) -> None:
    job_id, report = submit(client), engine_report(refined=False)
    report["rollout"]["forward_kl"] = None
    add_diagnosis(client, job_id, 0, report)
    (shown,) = client.get(f"/jobs/{job_id}/diagnosis").json()["data"]
    assert shown["report"] == report
    assert (shown["report"]["refined"], shown["report"]["first_wrong_step"]) == (None, None)


def test_rounds_come_in_order_and_in_pages(either_client: TestClient) -> None:
    job_id, report = submit(either_client), engine_report()
    for round_index in (2, 0, 1):
        add_diagnosis(either_client, job_id, round_index, report)
    add_diagnosis(either_client, submit(either_client), 7, report)

    def rounds(**params: int) -> tuple[list[int], bool]:
        page = either_client.get(f"/jobs/{job_id}/diagnosis", params=params).json()
        return [row["round"] for row in page["data"]], page["has_more"]

    assert rounds() == ([0, 1, 2], False)
    assert rounds(limit=2) == ([0, 1], True)
    assert rounds(after=1) == ([2], False)


def test_another_job_or_a_bad_page_is_refused(client: TestClient) -> None:
    assert client.get("/jobs/job_0000000000000000000000000a/diagnosis").status_code == 404
    assert client.get(f"/jobs/{submit(client)}/diagnosis", params={"after": -1}).status_code == 422


@pytest.mark.parametrize("name", ["forward_kl", "epistemic_mass", "bimodal_share", "clip_share", "clipped_kl_share"])
def test_the_document_says_what_the_figures_mean(name: str) -> None:
    figures = DiagnosisReport.model_json_schema()["$defs"]["ContextFigures"]["properties"]
    assert figures[name]["description"]
