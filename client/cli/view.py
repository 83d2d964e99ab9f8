"""``trd view``: open a page in an open tab of the dashboard."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from client import Client
from client.cli.exit_codes import NOT_FOUND
from client.cli.job_argument import JobArgument, job_id_of
from client.cli.output import JsonFlag, plain, print_json, remark, say

Page = Literal["overview", "diagnosis", "trajectories", "samples", "checkpoints", "events", "spec"]


def view(
    job: JobArgument,
    trajectory: Annotated[
        str | None, typer.Argument(metavar="[ROUND:POSITION]", help="This trajectory of it.", show_default=False)
    ] = None,
    *,
    page: Annotated[Page, typer.Option(help="Which of the job's pages.")] = "overview",
    token: Annotated[int | None, typer.Option(min=0, help="Select this token, from 0.")] = None,
    side: Annotated[Literal["rollout", "refined"], typer.Option(help="Which text has the token.")] = "rollout",
    text: Annotated[str | None, typer.Option(help="Highlight this text.")] = None,
    wait: Annotated[float, typer.Option(min=0, max=20, help="Seconds; 0 only prints the link.")] = 8.0,
    as_json: JsonFlag = False,
) -> None:
    """Open a job, a trajectory, a token or a text in an open tab of your dashboard, and print the link.

    Exit code 4 if no tab opened it.
    """
    with Client() as trd:
        job_id = job_id_of(trd, job)
        place = trd.view(job_id, trajectory, wait_seconds=wait, page=page, side=side, token=token, text=text)
        url = trd.settings.url.rstrip("/") + place.path
    if as_json:
        print_json({**plain(place), "url": url})
    else:
        say(url)
        remark(place.message)
    if wait > 0 and not place.is_opened:
        raise typer.Exit(NOT_FOUND)
