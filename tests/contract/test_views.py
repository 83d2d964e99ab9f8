"""The client reads what a newer service sends, and a view shows no more of a row than its fields."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from contract.job_state import JobStatus
from contract.tables import ApiKey
from contract.views.events import EventView
from contract.views.jobs import DryRunView, JobProgress
from contract.views.keys import KeyScope, KeyView

PROGRESS: dict[str, Any] = {
    "id": "job_1",
    "status": "running",
    "attempt": 1,
    "phase": None,
    "phase_done": None,
    "phase_total": None,
    "round": None,
    "num_rounds": None,
    "step": 3,
    "num_steps": 9,
    "eta_seconds": None,
    "latest_metrics": {"loss": 0.5},
}


def read(**fields: Any) -> JobProgress:
    return JobProgress.model_validate_json(json.dumps(PROGRESS | fields))


def test_known_values_are_read_as_their_enum() -> None:
    job = read(status="succeeded")
    assert job.status is JobStatus.SUCCEEDED
    assert job.is_over


def test_fields_and_values_of_a_newer_service_are_kept() -> None:
    job = read(status="hibernating", phase="dreaming", depth=2)
    assert (job.status, job.phase, job.is_over) == ("hibernating", "dreaming", False)
    assert json.loads(job.model_dump_json()) == PROGRESS | {"status": "hibernating", "phase": "dreaming", "depth": 2}


def test_a_spec_of_a_newer_service_is_kept() -> None:
    document = {"spec": {"mode": "trd", "new": 1}, "estimate": None, "memory": None, "duration": None}
    view = DryRunView.model_validate_json(json.dumps(document | {"phases": [], "estimate_notes": [], "notices": []}))
    assert view.spec["new"] == 1


@pytest.mark.parametrize("fields", [{"status": 3}, {"status": None}, {"step": "many"}])
def test_a_value_of_another_type_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        read(**fields)


def test_a_view_of_a_row_has_its_fields_only() -> None:
    row = ApiKey(id="key_1", owner="ann", name="n", digest="secret", scopes=["read"], created_at=datetime.now(UTC))
    view = KeyView.of(row)
    assert set(view.model_dump()) == set(KeyView.model_fields)
    assert view.scopes == [KeyScope.READ]


def test_the_schema_describes_this_version_only() -> None:
    schema = JobProgress.model_json_schema(mode="serialization")
    assert "additionalProperties" not in schema
    assert schema["properties"]["status"] == {"$ref": "#/$defs/JobStatus"}
    assert EventView.model_json_schema()["properties"]["level"]["enum"] == ["info", "warn", "error"]
