"""``trd models`` and ``trd status``: available models, and the state of the service."""

from __future__ import annotations

import typer
from rich.text import Text

from client import Client
from client.cli.exit_codes import FAILED
from client.cli.output import JsonFlag, answers, facts, plain, print_json, table


def models(as_json: JsonFlag = False) -> None:
    """List the models that a job may name as student or teacher."""
    with Client() as trd:
        found = trd.models.list()
    if as_json:
        print_json(found)
        return
    rows = table("model", "from", "#context", "#vocabulary", "")
    for model in found:
        source = "a folder of the service" if model.is_local else f"hub {model.revision or ''}".strip()
        context, vocabulary = _count(model.context_tokens), _count(model.vocabulary_tokens)
        rows.add_row(model.id, source, context, vocabulary, Text(model.refusal or "", style="red"))
    answers().print(rows)


def _count(number: int | None) -> str:
    return str(number) if number is not None else "—"


def status(as_json: JsonFlag = False) -> None:
    """Show whether the service can serve requests, and the state of each part. Exit code 1 if it cannot."""
    with Client() as trd:
        url, has_key = trd.settings.url, trd.settings.api_key is not None
        ready = trd.readiness()
        if has_key and ready.is_ready:
            trd.jobs.page(limit=1)  # raises if the key is unknown
    if as_json:
        print_json({"url": url, "has_key": has_key, **plain(ready)})
    else:
        key = "accepted" if has_key and ready.is_ready else "not tried" if has_key else "none: set TRD_API_KEY"
        parts = {name: str(value) for name, value in plain(ready).items() if name != "workers"}
        rows = [("url", url), ("key", key), *parts.items()]
        for worker in ready.workers:
            checks = "its machine is not checked" if worker.num_passed is None else f"{worker.num_passed} checks passed"
            rows.append(("worker", f"{worker.name}, {worker.device_kind or 'device unknown'}, {checks}"))
            rows += [("  failed", f"{one.check}: {one.message}; {one.remedy}") for one in worker.failures]
        answers().print(facts(rows))
    if not ready.is_ready:
        raise typer.Exit(FAILED)
