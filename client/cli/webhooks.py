"""``trd webhooks``: receivers of your jobs' events."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from client import Client
from client.cli.output import JsonFlag, LimitOption, moment, print_list, print_result
from contract.views.webhooks import DeliveryView

app = typer.Typer(help="Post your jobs' events to your own server, signed.", no_args_is_help=True)

WebhookArgument = Annotated[str, typer.Argument(metavar="WEBHOOK_ID", help="Its id, wh_….", show_default=False)]


@app.command()
def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where events are posted.", show_default=False)],
    event: Annotated[
        list[str] | None,
        typer.Option("--event", "-e", help="Type of events, such as job.succeeded; repeatable; by default all."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Create a webhook. Its secret is shown only once."""
    with Client() as trd:
        made = trd.webhooks.create(url, event_types=event or ())
    note = f"{made.id}; the secret verifies the signatures and is not shown again"
    print_result(made, made.secret, as_json, note)


@app.command("list")
def list_webhooks(limit: LimitOption = 20, as_json: JsonFlag = False) -> None:
    """List your webhooks, newest first."""
    with Client() as trd:
        found = list(trd.webhooks.list(num_wanted=limit))
    print_list(
        found,
        ("webhook", "URL", "events", "enabled", "created"),
        lambda one: (
            *(one.id, Text(one.url), ", ".join(one.event_types) or "all"),
            *("yes" if one.is_enabled else "no", moment(one.created_at)),
        ),
        as_json=as_json,
        if_empty="no webhooks; `trd webhooks create URL` creates one",
    )


@app.command()
def deliveries(webhook: WebhookArgument, limit: LimitOption = 20, as_json: JsonFlag = False) -> None:
    """List a webhook's deliveries, newest first, with the receiver's last answers."""
    with Client() as trd:
        found = list(trd.webhooks.deliveries(webhook, num_wanted=limit))
    columns = ("delivery", "event", "job", "status", "#tries", "tried", "#ms", "answer")
    print_list(found, columns, _delivery_cells, as_json=as_json)


def _delivery_cells(one: DeliveryView) -> tuple[str | Text | None, ...]:
    answer = one.error or f"{one.response_status or ''} {one.response_head or ''}".strip()
    latency = "" if one.latency_seconds is None else f"{1000 * one.latency_seconds:.0f}"
    return (
        *(one.id, one.event_type, one.job_id, one.status),
        *(str(one.num_tries), moment(one.tried_at), latency, Text(answer[:80])),
    )


@app.command()
def replay(
    webhook: WebhookArgument,
    delivery: Annotated[str, typer.Argument(metavar="DELIVERY_ID", help="Its id, msg_….", show_default=False)],
    as_json: JsonFlag = False,
) -> None:
    """Send a delivery again, with the same id and body."""
    with Client() as trd:
        done = trd.webhooks.replay(webhook, delivery)
    print_result(done, f"{done.id} is sent again", as_json)


@app.command()
def delete(webhook: WebhookArgument, as_json: JsonFlag = False) -> None:
    """Delete a webhook and its deliveries."""
    with Client() as trd:
        done = trd.webhooks.delete(webhook)
    print_result(done, f"{done.id} is deleted", as_json)
