"""Cases of the table of faults, and the fleet, with the small engine, in one deployment; `make faults` and `make fleet`
have the real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.fleet import Fleet
from tests.faults.harness.cases import CASES
from tests.faults.harness.deployment import Deployment
from tests.faults.harness.scene import Case, Theatre

pytestmark = pytest.mark.extended


@pytest.fixture(scope="module")
def theatre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """The deployment, its workers, and an undisturbed run."""
    folder = tmp_path_factory.mktemp("faults")
    with Deployment(folder, application="tests.faults.harness.quick_worker", num_apis=2) as deployment:
        yield Theatre(deployment)


@pytest.mark.parametrize("case", [case for case in CASES if case.in_ci], ids=lambda case: case.name)
def test_nothing_is_lost_if(theatre: Theatre, case: Case) -> None:
    outcome = theatre.play(case)
    assert outcome.problems == []


def test_a_fleet_loses_an_api_and_a_worker_and_no_job(theatre: Theatre) -> None:
    fleet = Fleet(theatre, {1: theatre.reference}, {1: 4})
    fleet.kill_api_while_jobs_are_submitted()
    fleet.kill_worker()
    fleet.finish()
    assert fleet.losses() == []
    assert [recovery.seconds > 0 for recovery in fleet.recoveries] == [True, True]
    assert "attempt 2, by the worker " in fleet.recoveries[1].recovered_by

    lost, repeated = (scene.job_id for scene in fleet.scenes[:2])
    theatre.deployment.sql("DELETE FROM metric_points WHERE job_id = %s AND name = 'loss' AND step = 1", lost)
    theatre.deployment.sql("UPDATE metric_points SET value = value WHERE job_id = %s AND step = 1", repeated)
    shown = " ".join(fleet.losses())
    assert f"{lost}: 1 metrics are missing" in shown
    assert f"{repeated}:  wrote while None held the lease of the job, which was succeeded" in shown
