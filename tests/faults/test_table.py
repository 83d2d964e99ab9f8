"""Cases of the table of faults with the small engine, in one deployment; `make faults` plays all with the real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.harness.cases import CASES
from tests.faults.harness.deployment import Deployment
from tests.faults.harness.scene import Case, Theatre

pytestmark = pytest.mark.extended


@pytest.fixture(scope="module")
def theatre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """The deployment, its workers, and an undisturbed run."""
    folder = tmp_path_factory.mktemp("faults")
    with Deployment(folder, application="tests.faults.harness.quick_worker") as deployment:
        yield Theatre(deployment)


@pytest.mark.parametrize("case", [case for case in CASES if case.in_ci], ids=lambda case: case.name)
def test_nothing_is_lost_if(theatre: Theatre, case: Case) -> None:
    outcome = theatre.play(case)
    assert outcome.problems == []
