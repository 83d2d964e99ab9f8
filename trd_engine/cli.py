"""``python -m trd_engine run spec.json --out DIR``: a run without any service; ``… chat FOLDER``: talk to its model."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from trd_engine.checkpoint import newest_checkpoint
from trd_engine.config import load_config
from trd_engine.errors import EngineError, StopRequested

EXIT_FAILED = 1
EXIT_STOPPED = 75  # sysexits' EX_TEMPFAIL: run it again and it goes on


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.command == "prompts":
        return _print_prompts()
    return _chat(options.folder) if options.command == "chat" else _run(options)


def _print_prompts() -> int:
    from trd_engine.tasks.prompts import BY_TASK

    print(json.dumps({name: asdict(templates) for name, templates in BY_TASK.items()}, indent=1))  # noqa: T201
    return 0


def _chat(folder: Path) -> int:
    from trd_engine import chat  # torch takes seconds to load

    return chat.main(folder)


def _run(options: argparse.Namespace) -> int:
    stopping = False

    def ask_to_stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    try:
        config = load_config(options.spec)
        from trd_engine.train import run  # torch takes seconds to load; a broken spec is told at once

        resume_from = newest_checkpoint(options.out) if options.resume else None
        run(config, options.out, resume_from=resume_from, stop=lambda: stopping, prune_checkpoints=True)
    except StopRequested:
        if _is_main():
            print(f"stopped; go on with: python -m trd_engine run {options.spec} --out {options.out} --resume")  # noqa: T201
        return EXIT_STOPPED
    except EngineError as error:
        print(f"{error.code}: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    if _is_main():
        lines = [*_scores(options.out), f"finished: {newest_checkpoint(options.out)}"]
        print("\n".join(lines))  # noqa: T201
    return 0


def _scores(out: Path) -> list[str]:
    """The evaluations that the run reported at its end, a line each; the main process has written them."""
    events = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = next(event["summary"]["scores"] for event in reversed(events) if event["type"] == "finished")
    return [
        f"step {row['step']}, {row['num_problems']} problems of {row['dataset']}: "
        f"avg@{row['k']} {row['avg_at_k']:.1%}, pass@{row['k']} {row['pass_at_k']:.1%}"
        for row in rows
    ]


def _is_main() -> bool:
    """Of several processes the main one prints."""
    return os.environ.get("RANK", "0") == "0"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trd_engine", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a distillation; its events go to DIR/events.jsonl")
    run.add_argument("spec", type=Path, help="JSON file with the engine's spec (trd_engine.config.RunConfig)")
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for events and checkpoints")
    run.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in DIR")
    commands.add_parser("prompts", help="print the tasks' built-in templates: what contract/task_prompts.json holds")
    chat = commands.add_parser("chat", help="answer questions, as lines of JSON, from a model's folder")
    chat.add_argument("folder", type=Path, help="a checkpoint's model or adapter folder, or any model's")
    return parser
