"""``trd try``: talk to a checkpoint. The model runs in a child process: nothing here loads a tensor library."""

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


@dataclass(frozen=True)
class _Sampling:
    """How answers are drawn."""

    temperature: float
    max_new_tokens: int


@dataclass
class _Talk:
    """What was said so far, as the chat template takes it."""

    is_raw: bool
    remembers: bool
    is_one_of_many: bool
    """True where answers need their questions beside them."""
    messages: list[dict[str, str]] = field(default_factory=list)

    def request(self, text: str, sampling: _Sampling) -> dict[str, Any]:
        """What the child is asked."""
        settings = {"temperature": sampling.temperature, "max_new_tokens": sampling.max_new_tokens}
        if self.is_raw:
            return {"prompt": text, **settings}
        if not self.remembers:
            self.messages.clear()
        self.messages.append({"role": "user", "content": text})
        return {"messages": self.messages, **settings}

    def answered(self, text: str) -> None:
        """The model's turn."""
        if not self.is_raw:
            self.messages.append({"role": "assistant", "content": text})


def try_model(
    target: Annotated[
        str, typer.Argument(metavar="JOB|FOLDER", help="A job's id, 'latest', or a model's folder.", show_default=False)
    ],
    *,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="Ask this and end; may be repeated.")
    ] = None,
    step: Annotated[str, typer.Option(help="Which checkpoint of the job.")] = LATEST,
    raw: Annotated[bool, typer.Option("--raw", help="Go on from the text as it is: no chat template.")] = False,
    remember: Annotated[bool, typer.Option(help="Show what was said before; not for models of one turn.")] = True,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 is greedy.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=1_000_000, help="Longest answer.")] = 256,
    as_json: JsonFlag = False,
) -> None:
    """Chat with a checkpoint: of a job, downloaded first, or in a folder. An empty line or Ctrl-D ends."""
    folder = _folder_of(target, step, is_quiet=as_json)
    talk = _Talk(raw, remembers=remember and not prompt, is_one_of_many=len(prompt or ()) > 1)
    sampling = _Sampling(temperature, max_new_tokens)
    try:
        with _model(folder) as model:
            for text in prompt or _typed():
                _answer(model, talk, text, sampling, as_json)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _folder_of(target: str, step: str, *, is_quiet: bool) -> Path:
    folder = Path(target)
    if folder.is_dir():
        return folder
    if target != LATEST and not target.startswith(JOB_PREFIX):
        raise NothingThereError(f"{target}: is neither a folder here nor a job's id")
    with Client() as trd:
        manifest = trd.checkpoints.manifest(job_id_of(trd, target), step)
        kept = trd.settings.data_dir / "tried" / manifest.job_id / f"step-{manifest.step}"
        return fetch(trd, manifest, kept, served_folder(manifest), is_quiet=is_quiet).folder


def _typed() -> Iterator[str]:
    """Lines of the standard input; a person is asked for them, and ends with an empty one."""
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


def _answer(model: _Model, talk: _Talk, text: str, sampling: _Sampling, as_json: bool) -> None:
    console = answers()
    if talk.is_one_of_many and not as_json:
        remark(f"▸ {text}")
    pieces = []
    for piece in model.ask(talk.request(text, sampling)):
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
    """The child process that holds the model; lines of JSON in both directions."""

    def __init__(self, asking: IO[str], answering: IO[str], errors: Path) -> None:
        self._asking = asking
        self._answering = answering
        self._errors = errors
        self.last_end: dict[str, Any] = {}

    def wait_until_loaded(self) -> None:
        """Raises `TrdError` where the model cannot be loaded."""
        while not self._next().get("is_ready"):
            pass

    def ask(self, request: dict[str, Any]) -> Iterator[str]:
        """The pieces of the answer; what ends it is `last_end` then."""
        self._asking.write(json.dumps(request) + "\n")
        self._asking.flush()
        while "piece" in (line := self._next()):
            yield line["piece"]
        self.last_end = line

    def _next(self) -> dict[str, Any]:
        line = self._answering.readline()
        if not line:
            raise TrdError("the process that holds the model ended", hint=f"it said: {self._last_words()}")
        document: dict[str, Any] = json.loads(line)
        if "error" in document:
            raise TrdError(document["error"])
        return document

    def _last_words(self) -> str:
        text = self._errors.read_text(encoding="utf-8", errors="replace").strip()
        return text.splitlines()[-1] if text else "nothing"


@contextmanager
def _model(folder: Path) -> Iterator[_Model]:
    """The model in the folder, loaded; its process ends with the block."""
    command = python_command("trd_engine", "chat", str(folder))
    with tempfile.TemporaryDirectory(prefix="trd-try-") as scratch:
        errors = Path(scratch) / "stderr"
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, encoding="utf-8"
            )
        assert process.stdin is not None, "asked for a pipe"
        assert process.stdout is not None, "asked for a pipe"
        try:
            model = _Model(process.stdin, process.stdout, errors)
            remark(f"loading {folder} …")
            model.wait_until_loaded()
            yield model
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                pipe.close()
