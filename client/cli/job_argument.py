"""The argument that names a job, by its id or as ``latest``; the shell completes both."""

from __future__ import annotations

from typing import Annotated

import typer

from client import Client, ClientSettings, TrdError
from client.downloads import LATEST
from client.errors import NotFoundError, Refusal
from contract.ids import JOB_PREFIX

NUM_COMPLETED = 50


def _complete(incomplete: str) -> list[tuple[str, str]]:
    """Return job ids with descriptions; nothing if the service does not answer immediately."""
    try:
        settings = ClientSettings.from_environment().model_copy(
            update={"connect_seconds": 0.5, "read_seconds": 1.5, "max_retries": 0}
        )
        with Client(settings=settings) as trd:
            jobs = trd.jobs.page(limit=NUM_COMPLETED).data
    except TrdError:
        return []
    found = [(LATEST, "the newest job"), *((job.id, f"{job.status} {job.name or ''}".strip()) for job in jobs)]
    return [(job_id, words) for job_id, words in found if job_id.startswith(incomplete)]


JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="Its id, or 'latest'.", autocompletion=_complete, show_default=False)
]


def job_id_of(trd: Client, name: str) -> str:
    """Return the id that `name` means; raises `NotFoundError` if it is not an id, or if there is no latest job."""
    if name.startswith(JOB_PREFIX):
        return name
    if name != LATEST:
        raise NotFoundError(
            Refusal(404, f"{name}: is no job's id, which begins with {JOB_PREFIX}", code="job_not_found")
        )
    newest = next(trd.jobs.list(num_wanted=1), None)
    if newest is None:
        raise NotFoundError(Refusal(404, "there are no jobs yet", code="job_not_found"))
    return newest.id
