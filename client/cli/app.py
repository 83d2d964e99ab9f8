"""All commands, wired together."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from client.cli import (
    chat,
    compare,
    datasets,
    diagnosis,
    doctor,
    download,
    jobs,
    keys,
    metrics,
    models,
    report,
    submit,
    trajectories,
    up,
    view,
    watch,
    webhooks,
)
from client.cli.output import say

app = typer.Typer(
    name="trd",
    help="Distil language models: start a service, submit jobs to it, watch them, use what they make.",
    epilog="Which service: TRD_URL and TRD_API_KEY, else the one that `trd up` started in this folder.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        say(version("trd-service"))
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


_RUN, _LOOK, _CHANGE, _OTHER = "Run", "Look", "Change", "Other things"

app.command("up", rich_help_panel=_RUN)(up.up)
app.command("submit", rich_help_panel=_RUN)(submit.submit)
app.command("watch", rich_help_panel=_RUN)(watch.watch)
app.command("download", rich_help_panel=_RUN)(download.download)
app.command("try", rich_help_panel=_RUN)(chat.try_model)

app.command("jobs", rich_help_panel=_LOOK)(jobs.list_jobs)
app.command("show", rich_help_panel=_LOOK)(jobs.show)
app.command("logs", rich_help_panel=_LOOK)(watch.logs)
app.command("metrics", rich_help_panel=_LOOK)(metrics.metrics)
app.command("trajectories", rich_help_panel=_LOOK)(trajectories.trajectories)
app.command("view", rich_help_panel=_LOOK)(view.view)
app.command("samples", rich_help_panel=_LOOK)(trajectories.samples)
app.command("diagnosis", rich_help_panel=_LOOK)(diagnosis.diagnosis)
app.command("compare", rich_help_panel=_LOOK)(compare.compare)
app.command("report", rich_help_panel=_LOOK)(report.report)

app.command("cancel", rich_help_panel=_CHANGE)(jobs.cancel)
app.command("pause", rich_help_panel=_CHANGE)(jobs.pause)
app.command("resume", rich_help_panel=_CHANGE)(jobs.resume)
app.command("clone", rich_help_panel=_CHANGE)(submit.clone)
app.command("delete", rich_help_panel=_CHANGE)(jobs.delete)

app.add_typer(datasets.app, name="datasets", rich_help_panel=_OTHER)
app.add_typer(keys.app, name="keys", rich_help_panel=_OTHER)
app.add_typer(webhooks.app, name="webhooks", rich_help_panel=_OTHER)
app.command("models", rich_help_panel=_OTHER)(models.models)
app.command("status", rich_help_panel=_OTHER)(models.status)
app.command("retention", rich_help_panel=_OTHER)(models.retention)
app.command("doctor", rich_help_panel=_OTHER)(doctor.doctor)
