"""``trd``: run a command, and turn errors into one line, a hint, and an exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rich.markup import escape

from client.cli.exit_codes import FAILED, INTERRUPTED, exit_code
from client.cli.output import remarks
from client.errors import ApiError, JobFailedError, TrdError

MAX_ERRORS_SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    from client.cli.app import app

    try:
        app(arguments, prog_name="trd")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except (TrdError, OSError, UnicodeEncodeError) as error:
        failure = error if isinstance(error, TrdError) else _output_failure(error)
        (_print_json_error if "--json" in arguments else _print_error)(failure)
        return exit_code(failure)
    return 0


def _output_failure(error: OSError | UnicodeEncodeError) -> TrdError:
    """Return the error of a file, a folder or an output that the command reads or writes."""
    if isinstance(error, UnicodeEncodeError):
        return TrdError(
            f"the output's encoding, {error.encoding}, lacks a character", hint="set PYTHONIOENCODING=utf-8"
        )
    return TrdError(f"{error.filename}: {error.strerror}" if error.filename is not None else str(error))


def _print_error(error: TrdError) -> None:
    console = remarks()
    console.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True)
    if isinstance(error, ApiError):
        for fault in error.errors[:MAX_ERRORS_SHOWN] if len(error.errors) > 1 else []:
            console.print(f"  - {escape(_fault(fault))}", soft_wrap=True)
        if len(error.errors) > MAX_ERRORS_SHOWN:
            console.print(f"  … and {len(error.errors) - MAX_ERRORS_SHOWN} more", style="dim")
        if error.status >= 500 and error.request_id is not None:
            console.print(f"request: {escape(error.request_id)}", style="dim")
    if error.hint is not None:
        console.print(f"hint: {escape(error.hint)}", soft_wrap=True, style="yellow")


def _fault(fault: dict[str, object]) -> str:
    where = f"row {fault['row']}: " if "row" in fault else f"{fault['code']}: " if "code" in fault else ""
    remedy = f"; {fault['remedy']}" if fault.get("remedy") else ""
    return f"{where}{fault.get('message', '')}{remedy}"


def _print_json_error(error: TrdError) -> None:
    document: dict[str, object] = {"message": error.message, "hint": error.hint, "exit_code": exit_code(error)}
    if isinstance(error, ApiError):
        names = ("status", "type", "code", "param", "request_id", "errors")
        document |= {name: getattr(error.refusal, name) for name in names}
    elif isinstance(error, JobFailedError):
        document["code"] = error.code
    sys.stderr.write(json.dumps({"error": document}, ensure_ascii=False) + "\n")
