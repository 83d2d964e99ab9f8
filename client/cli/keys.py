"""``trd keys``: API keys, and the audit log; for admins."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from client import Client
from client.cli.output import JsonFlag, LimitOption, moment, print_list, print_result
from contract.views.keys import KeyScope

app = typer.Typer(help="Create, list and revoke keys (admins).", no_args_is_help=True)

KeyArgument = Annotated[
    str, typer.Argument(metavar="KEY_ID", help="The id of the key, key_…, not the key itself.", show_default=False)
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="For people.", show_default=False)],
    owner: Annotated[
        str | None, typer.Option(help="Owner of what is created with the key; by default you.", show_default=False)
    ] = None,
    scope: Annotated[
        KeyScope, typer.Option(help="read: read only; submit: also create and change; admin: also manage keys.")
    ] = KeyScope.SUBMIT,
    as_json: JsonFlag = False,
) -> None:
    """Create a key. It is shown only once."""
    with Client() as trd:
        made = trd.keys.create(name, owner=owner, scopes=[scope])
    print_result(made, made.key, as_json, f"{made.id}, {scope}, owner {made.owner}; it is not shown again")


@app.command("list")
def list_keys(limit: LimitOption = 20, as_json: JsonFlag = False) -> None:
    """List keys of all owners, newest first."""
    with Client() as trd:
        found = list(trd.keys.list(num_wanted=limit))
    print_list(
        found,
        ("key", "name", "owner", "scopes", "created", "revoked"),
        lambda key: (
            *(key.id, Text(key.name), key.owner, ", ".join(key.scopes), moment(key.created_at)),
            Text(moment(key.revoked_at) or "", style="red"),
        ),
        as_json=as_json,
        if_empty="no keys except the one with which the service was started; `trd keys create NAME` creates one",
    )


@app.command()
def revoke(key: KeyArgument, as_json: JsonFlag = False) -> None:
    """Revoke a key: from now on it is refused."""
    with Client() as trd:
        done = trd.keys.revoke(key)
    print_result(done, f"{done.id} ({done.name}) is revoked", as_json)


@app.command()
def rotate(
    key: KeyArgument,
    grace: Annotated[
        int, typer.Option("--grace", min=0, max=90 * 86_400, help="Seconds for which the old key still works.")
    ] = 86_400,
    as_json: JsonFlag = False,
) -> None:
    """Replace a key by a new one with the same rights, which is shown only once."""
    with Client() as trd:
        made = trd.keys.rotate(key, grace_seconds=grace)
    note = f"{made.id}, owner {made.owner}; it is not shown again. {key} works for {grace} seconds more"
    print_result(made, made.key, as_json, note)


@app.command()
def audit(
    limit: LimitOption = 20,
    owner: Annotated[str | None, typer.Option(help="Only what this owner did.", show_default=False)] = None,
    action: Annotated[str | None, typer.Option(help="Only this action, as job.create.", show_default=False)] = None,
    target: Annotated[str | None, typer.Option(help="Only what was done to this.", show_default=False)] = None,
    as_json: JsonFlag = False,
) -> None:
    """List who did what, newest first."""
    with Client() as trd:
        found = list(trd.keys.audit(num_wanted=limit, owner=owner, action=action, target=target))
    print_list(
        found,
        ("when", "owner", "key", "action", "target", "request"),
        lambda entry: (
            *(moment(entry.at), Text(entry.owner), Text(entry.key_id), entry.action, Text(entry.target)),
            entry.request_id,
        ),
        as_json=as_json,
        if_empty="nothing was recorded that matches",
    )
