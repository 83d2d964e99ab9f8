from __future__ import annotations

import pytest

from contract.job_state import (
    ACTION_RESULTS,
    FINAL_STATUSES,
    LEASED_STATUSES,
    TRANSITIONS,
    Action,
    IllegalTransitionError,
    JobStatus,
    assert_transition,
    legal_actions,
    legal_statuses,
)


def test_every_status_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(JobStatus)


def test_what_an_action_leads_to_is_a_legal_transition() -> None:
    for results in ACTION_RESULTS.values():
        for status, result in results.items():
            assert status is result or result in TRANSITIONS[status]


def test_every_status_is_reached_from_queued() -> None:
    reached, frontier = set(), {JobStatus.QUEUED}
    while frontier:
        reached |= frontier
        frontier = {new for status in frontier for new in TRANSITIONS[status]} - reached
    assert reached == set(JobStatus)


def test_every_leased_status_can_end() -> None:
    for status in LEASED_STATUSES:
        assert TRANSITIONS[status] & FINAL_STATUSES


def test_no_action_takes_a_job_from_its_worker_at_once() -> None:
    """A leased job is asked to stop; only its worker, or the reaper, ends it."""
    for results in ACTION_RESULTS.values():
        for status, result in results.items():
            if status in LEASED_STATUSES:
                assert result in LEASED_STATUSES


def test_a_succeeded_job_never_changes() -> None:
    with pytest.raises(IllegalTransitionError, match="none, it is final"):
        assert_transition(JobStatus.SUCCEEDED, JobStatus.QUEUED)
    assert legal_actions(JobStatus.SUCCEEDED) == [Action.DELETE]


def test_an_illegal_transition_says_what_is_legal() -> None:
    assert_transition(JobStatus.QUEUED, JobStatus.RUNNING)
    with pytest.raises(IllegalTransitionError, match="legal from paused: cancelled, queued"):
        assert_transition(JobStatus.PAUSED, JobStatus.RUNNING)


def test_only_a_job_that_is_over_can_be_deleted() -> None:
    assert set(legal_statuses(Action.DELETE)) == FINAL_STATUSES
    assert legal_statuses(Action.PAUSE) == [
        JobStatus.QUEUED,
        JobStatus.RUNNING,
        JobStatus.PAUSING,
        JobStatus.PAUSED,
    ]
