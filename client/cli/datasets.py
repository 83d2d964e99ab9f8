"""``trd datasets``: the problems that jobs train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from client import Client, TrdError
from client.cli.output import (
    JsonFlag,
    LimitOption,
    age,
    answers,
    byte_bar,
    facts,
    moment,
    notice_block,
    print_json,
    print_list,
    print_result,
    remark,
    remarks,
    say,
    size,
)
from client.datasets import PreviewOptions
from contract.views.datasets import DatasetView

app = typer.Typer(help="Upload, list, show, preview and delete datasets.", no_args_is_help=True)

DatasetArgument = Annotated[str, typer.Argument(metavar="DATASET", help="Its id.", show_default=False)]


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(help="JSON Lines, JSON, CSV or Parquet.", show_default=False)],
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=COLUMN", help="Column of the file for one of our fields; repeatable."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Upload problems: rows of problem, answer and, optionally, solution."""
    columns = dict(_field_and_column(given) for given in column or [])
    with Client() as trd:
        made = upload_file(trd, file, columns=columns, is_quiet=as_json)
        if made.notices and not as_json:
            remarks().print(notice_block(made.notices))
    print_result(made, made.id, as_json)


def _field_and_column(given: str) -> tuple[str, str]:
    field, equals, name = given.partition("=")
    if not (field and equals and name):
        raise typer.BadParameter(f"{given}: write FIELD=COLUMN, as problem=question", param_hint="--column")
    return field, name


def upload_file(
    trd: Client, path: Path, *, columns: dict[str, str] | None = None, is_quiet: bool = False
) -> DatasetView:
    """Upload with a progress bar; raises `InvalidRequestError`, which names rows and fields."""
    try:
        num_bytes = path.stat().st_size
    except OSError as error:
        raise TrdError(f"{path} cannot be read: {error.strerror}") from error
    with byte_bar(path.name, num_bytes, is_quiet=is_quiet) as on_bytes:
        made = trd.datasets.upload(path, columns=columns, on_bytes=on_bytes)
    if not is_quiet:
        solutions = "with solutions" if made.has_solutions else "not all with solutions"
        remark(f"{path.name}: {made.num_rows} rows, {solutions}, {size(made.num_bytes)}")
    return made


@app.command("list")
def list_datasets(limit: LimitOption = 20, as_json: JsonFlag = False) -> None:
    """List datasets, newest first."""
    with Client() as trd:
        found = list(trd.datasets.list(num_wanted=limit))
    print_list(
        found,
        ("dataset", "file", "format", "#rows", "#size", "solutions", "uploaded"),
        lambda row: (
            *(row.id, Text(row.filename), row.format, str(row.num_rows), size(row.num_bytes)),
            *("yes" if row.has_solutions else "no", age(row.created_at)),
        ),
        as_json=as_json,
        if_empty="no datasets; `trd datasets upload FILE` uploads one",
    )


@app.command()
def preview(
    dataset: DatasetArgument,
    model: Annotated[str, typer.Option(help="The student, as a job names it.", show_default=False)],
    teacher: Annotated[str | None, typer.Option(help="Without one, the student is its own teacher.")] = None,
    task: Annotated[str, typer.Option(help="math, exact, choice, code or reasoning_gym.")] = "math",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=20, help="Rows.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Show the prompts that a job would build from the first rows, as the models read them."""
    options = PreviewOptions(teacher=teacher, task=task, limit=limit)
    with Client() as trd:
        found = trd.datasets.preview(dataset, model=model, options=options)
    if as_json:
        print_json(found)
        return
    for row in found.data:
        say(f"row {row.row}" + (f": dropped, {row.dropped}" if row.dropped else ""))
        for prompt in row.prompts:
            room = "" if prompt.attempt_tokens_that_fit is None else f", room for {prompt.attempt_tokens_that_fit} more"
            cut = f", {prompt.num_cut_solution_tokens} of the reference cut" if prompt.num_cut_solution_tokens else ""
            say(f"\n{prompt.kind}: {prompt.num_tokens} tokens{cut}{room}")
            answers().print(Text(prompt.text))


@app.command()
def show(dataset: DatasetArgument, as_json: JsonFlag = False) -> None:
    """Show a dataset."""
    with Client() as trd:
        found = trd.datasets.get(dataset)
    if as_json:
        print_json(found)
        return
    if found.notices:
        answers().print(notice_block(found.notices))
    answers().print(
        facts(
            [
                ("dataset", found.id),
                ("file", found.filename),
                ("format", found.format),
                ("rows", str(found.num_rows)),
                ("solutions", "in every row" if found.has_solutions else "not in every row"),
                ("size", size(found.num_bytes)),
                ("sha256", found.sha256),
                ("uploaded", moment(found.created_at)),
            ]
        )
    )


@app.command()
def delete(
    dataset: DatasetArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Delete a dataset that no unfinished job needs."""
    if not yes and not as_json:
        typer.confirm(f"delete {dataset}?", abort=True)
    with Client() as trd:
        done = trd.datasets.delete(dataset)
    print_result(done, f"{done.id} is deleted", as_json)
