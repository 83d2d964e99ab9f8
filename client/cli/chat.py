"""``trd try``: chat with a checkpoint. The model runs in a child process: this package loads no tensor library."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from rich.console import Console

from client import Client, TrdError
from client.cli.download import fetch, served_folder
from client.cli.exit_codes import INTERRUPTED, NothingThereError
from client.cli.job_argument import job_id_of
from client.cli.output import JsonFlag, answers, print_json, remark
from client.cli.processes import python_command
from client.downloads import LATEST
from contract.ids import JOB_PREFIX


@dataclass
class _Talk:
    """The messages so far, as the chat template expects them."""

    sampling: dict[str, float]
    """temperature and max_new_tokens."""
    is_raw: bool
    remembers: bool
    is_one_of_many: bool
    """Whether to print each prompt before its answer."""
    messages: list[dict[str, str]] = field(default_factory=list)

    def request(self, text: str) -> dict[str, Any]:
        """Return the request for the child process."""
        if self.is_raw:
            return {"prompt": text, **self.sampling}
        if not self.remembers:
            self.messages.clear()
        self.messages.append({"role": "user", "content": text})
        return {"messages": self.messages, **self.sampling}

    def answered(self, text: str) -> None:
        """Remember the model's answer for the next question."""
        if not self.is_raw:
            self.messages.append({"role": "assistant", "content": text})


def try_model(
    target: Annotated[
        str, typer.Argument(metavar="JOB|FOLDER", help="A job's id, 'latest', or a model's folder.", show_default=False)
    ],
    *,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="Send this prompt and exit; may be repeated.")
    ] = None,
    step: Annotated[str, typer.Option(help="Which checkpoint of the job.")] = LATEST,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text without the chat template.")] = False,
    remember: Annotated[bool, typer.Option(help="Include the earlier messages; not for single-turn models.")] = True,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 is greedy.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=1_000_000, help="Maximum length of an answer.")] = 256,
    as_json: JsonFlag = False,
) -> None:
    """Chat with the checkpoint of a job, which is downloaded first, or of a folder. An empty line or Ctrl-D ends."""
    folder = _folder_of(target, step, is_quiet=as_json)
    sampling = {"temperature": temperature, "max_new_tokens": max_new_tokens}
    talk = _Talk(sampling, raw, remembers=remember and not prompt, is_one_of_many=len(prompt or ()) > 1)
    try:
        with _model(folder) as model:
            for text in prompt or _typed():
                _answer(model, talk, text, as_json)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _folder_of(target: str, step: str, *, is_quiet: bool) -> Path:
    folder = Path(target)
    if folder.is_dir():
        return folder
    if target != LATEST and not target.startswith(JOB_PREFIX):
        raise NothingThereError(f"{target}: is neither a folder nor the id of a job")
    with Client() as trd:
        manifest = trd.checkpoints.manifest(job_id_of(trd, target), step)
        kept = trd.settings.data_dir / "tried" / manifest.job_id / f"step-{manifest.step}"
        return fetch(trd, manifest, kept, served_folder(manifest), is_quiet=is_quiet).folder


def _typed() -> Iterator[str]:
    """Yield the lines of the standard input; in a terminal with a prompt, until an empty line."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        return
    console = Console(highlight=False)
    while True:
        try:
            text = console.input("[bold cyan]you ▸ [/]")
        except EOFError:
            return
        if not text.strip():
            return
        yield text


def _answer(model: _Model, talk: _Talk, text: str, as_json: bool) -> None:
    console = answers()
    if talk.is_one_of_many and not as_json:
        remark(f"▸ {text}")
    pieces = []
    for piece in model.ask(talk.request(text)):
        pieces.append(piece)
        if not as_json:
            console.out(piece, end="", highlight=False)
            console.file.flush()
    answer = "".join(pieces)
    talk.answered(answer)
    if as_json:
        print_json({"object": "answer", "prompt": text, "answer": answer, **model.last_end}, is_line=True)
        return
    console.out("")
    if model.last_end.get("is_truncated"):
        remark(f"(cut off after {model.last_end['num_tokens']} tokens; --max-new-tokens allows more)")


class _Model:
    """The child process that has the model loaded; JSON lines in both directions."""

    def __init__(self, asking: IO[str], answering: IO[str], errors: Path) -> None:
        self._asking = asking
        self._answering = answering
        self._errors = errors
        self.last_end: dict[str, Any] = {}

    def ask(self, request: dict[str, Any]) -> Iterator[str]:
        """Yield the pieces of the answer; afterwards `last_end` says how it ended."""
        self._asking.write(json.dumps(request) + "\n")
        self._asking.flush()
        while "piece" in (line := self._next()):
            yield line["piece"]
        self.last_end = line

    def _next(self) -> dict[str, Any]:
        line = self._answering.readline()
        if not line:
            lines = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            hint = f"its last output: {lines[-1] if lines else 'nothing'}"
            raise TrdError("the process with the loaded model exited", hint=hint)
        document: dict[str, Any] = json.loads(line)
        if "error" in document:
            raise TrdError(document["error"])
        return document


@contextmanager
def _model(folder: Path) -> Iterator[_Model]:
    """Load the model in the folder; its process exits at the end of the block."""
    command = python_command("trd_engine", "chat", str(folder))
    with tempfile.TemporaryDirectory(prefix="trd-try-") as scratch:
        errors = Path(scratch) / "stderr"
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, encoding="utf-8"
            )
        assert process.stdin is not None, "Popen made a pipe"
        assert process.stdout is not None, "Popen made a pipe"
        try:
            model = _Model(process.stdin, process.stdout, errors)
            remark(f"loading {folder} …")
            while not model._next().get("is_ready"):
                pass
            yield model
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                pipe.close()
