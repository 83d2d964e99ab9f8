"""``python -m trd_engine``: run a spec without the service, estimate it, evaluate, serve or chat with a model.

Whatever needs torch is imported within the commands: a broken spec is reported without waiting for it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trd_engine.config import DataSource, RunConfig, load_config
from trd_engine.runtime.errors import EngineError, StopRequested
from trd_estimate.hardware import Hardware, hardware_of_kind

if TYPE_CHECKING:
    from trd_engine.types import ScoreRow

EXIT_FAILED = 1
EXIT_STOPPED = 75  # sysexits' EX_TEMPFAIL: run it again, and it continues


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.command == "prompts":
        from trd_data.templates import BY_TASK

        print(json.dumps({name: asdict(templates) for name, templates in BY_TASK.items()}, indent=1))  # noqa: T201
        return 0
    if options.command == "chat":
        from trd_engine.generation import chat  # torch takes seconds to load

        return chat.main(options.model)
    if options.command == "doctor":
        from trd_engine.doctor import report  # torch takes seconds to load

        return report.main(options.out, options.spec, quick=options.quick, as_json=options.json)
    try:
        if options.command == "sample-server":
            from trd_engine.generation.served.start import become_server  # torch takes seconds to load

            become_server(options.model, options.vllm)
        stop = _stop_on_signals()
        config = load_config(options.spec)
        if options.command == "estimate":
            from trd_engine.doctor import estimate  # torch takes seconds to load

            return estimate.main(config, options.device, as_json=options.json)
        return _evaluate(config, options, stop) if options.command == "evaluate" else _run(config, options, stop)
    except StopRequested:
        return EXIT_STOPPED
    except EngineError as error:
        print(f"{error.code}: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    except OSError as error:
        if error.filename is None:
            raise
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED


def _stop_on_signals() -> Callable[[], bool]:
    """Return a function that tells whether a signal has asked to stop."""
    stopping = False

    def ask_to_stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    return lambda: stopping


def _evaluate(config: RunConfig, options: argparse.Namespace, stop: Callable[[], bool]) -> int:
    from trd_engine.evaluation.evaluate_folder import evaluate

    wanted = config.evaluation
    if options.data is not None:
        wanted = wanted.model_copy(update={"dataset": DataSource(path=options.data)})
    if options.k is not None:
        wanted = wanted.model_copy(update={"k": options.k})
    row = evaluate(config.model_copy(update={"evaluation": wanted}), options.folder, options.out, stop=stop)
    _print_scores([row])
    return 0


def _run(config: RunConfig, options: argparse.Namespace, stop: Callable[[], bool]) -> int:
    from trd_engine.training.checkpoints.checkpoint import newest_checkpoint
    from trd_engine.training.loop import distil

    resume_from = newest_checkpoint(options.out) if options.resume else None
    if options.resume and resume_from is None and _is_main():
        print(f"{options.out} has no checkpoint: the run starts from the beginning", file=sys.stderr)  # noqa: T201
    try:
        result = distil(
            config, options.out, resume_from=resume_from, stop=stop, on_event=_print_notice, prune_checkpoints=True
        )
    except StopRequested:
        if _is_main():
            print(f"stopped; resume with: python -m trd_engine run {options.spec} --out {options.out} --resume")  # noqa: T201
        raise
    if _is_main():
        _print_scores(result.scores)
        print(f"finished: {result.checkpoint}")  # noqa: T201
    return 0


def _print_notice(event: dict[str, Any]) -> None:
    """Print a warning when it is reported, with an example and what to do."""
    if event["type"] == "notice" and event["level"] == "warn":
        count = f" ({event['count']})" if event["count"] > 1 else ""
        print(f"! {event['code']}{count}: {event['message']}", file=sys.stderr)  # noqa: T201
        for name, text in (("example", event["example"]), ("what to do", event["remedy"])):
            if text:
                print(f"  {name}: {' '.join(text.split()):.250}", file=sys.stderr)  # noqa: T201


def _print_scores(scores: Sequence[ScoreRow]) -> None:
    for row in scores:
        print(  # noqa: T201
            f"step {row.step}, {row.num_problems} problems of {row.dataset}: "
            f"avg@{row.k} {row.avg_at_k:.1%}, pass@{row.k} {row.pass_at_k:.1%}"
        )


def _is_main() -> bool:
    """Return whether this is the main process, the only one that prints."""
    return os.environ.get("RANK", "0") == "0"


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _device(text: str) -> Hardware:
    try:
        return hardware_of_kind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trd_engine", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a distillation; its events go to DIR/events.jsonl")
    run.add_argument("spec", type=Path, help="JSON file with the engine's spec (trd_engine.config.RunConfig)")
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for events and checkpoints")
    run.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in DIR")
    evaluate = commands.add_parser("evaluate", help="a model's scores on a spec's evaluation problems")
    evaluate.add_argument("spec", type=Path, help="the spec whose data, task, sampling and seed are taken")
    evaluate.add_argument("folder", type=Path, help="a checkpoint, a model's or an adapter's folder")
    evaluate.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for events and all answers")
    evaluate.add_argument("--data", metavar="FILE", help="these problems instead of the spec's")
    evaluate.add_argument("--k", type=_positive, help="samples of each problem, instead of the spec's evaluation.k")
    commands.add_parser("prompts", help="print the tasks' built-in templates")
    chat = commands.add_parser("chat", help="answer questions, as lines of JSON, from a model's folder")
    what = "a checkpoint's model or adapter folder, any model's, a hub id, or a served teacher as in a spec, as JSON"
    chat.add_argument("model", help=what)
    server = commands.add_parser("sample-server", help="serve a model to runs that name a sampler pool, by vLLM")
    server.add_argument("model", help="folder or hub id of the runs' student, or of their teacher")
    server.add_argument(
        "vllm", nargs=argparse.REMAINDER, metavar="…", help="arguments of vLLM's server, such as --port"
    )
    estimate = commands.add_parser("estimate", help="print what a spec takes: tokens, memory, disk and time by phase")
    estimate.add_argument("spec", type=Path)
    estimate.add_argument(
        "--device", type=_device, help="h100, rtx-4090 or gpu-24gb, say (docs/estimate.md); without it, this machine's"
    )
    estimate.add_argument("--json", action="store_true", help="one JSON document")
    doctor = commands.add_parser("doctor", help="find out whether this machine can train")
    doctor.add_argument("spec", type=Path, nargs="?", help="also check what this spec needs")
    out = Path(os.environ.get("TRD_DATA_DIR", ""))
    doctor.add_argument("--out", type=Path, default=out, metavar="DIR", help="folder in which runs are written")
    doctor.add_argument("--quick", action="store_true", help="only what takes no more than a second")
    doctor.add_argument("--json", action="store_true", help="a line of JSON per finding")
    return parser
