"""Checks README.md and the pages of docs: links, anchors and code blocks. ``python -m docs.check``

A link leads to a file of the checkout and to a heading of its page. A path of a Python file exists, seen from the
checkout or from the engine. A block of Python compiles, JSON and YAML parse, and shell commands name what exists:
subcommands and options of ``trd``, targets of the Makefile, modules and their options. Nothing is run.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer
import yaml

from client.cli.app import app

CHECKOUT = Path(__file__).parents[1]
_FENCE = re.compile(r"^( *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^\1```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_INLINE = re.compile(r"`(trd [^`\n]+)`")
_SOURCE = re.compile(r"`((?:[\w.-]+/)+[\w-]+\.py)`")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
_ASSIGNMENT = re.compile(r"^[A-Z_]+=")
SHELL = ("", "sh", "bash", "console")
BREAKS = {"|", "||", "&&", ";", "&"}


def pages() -> list[Path]:
    """Return all pages."""
    return [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]


def faults(page: Path) -> Iterator[str]:
    """Yield what is wrong with a page, one sentence each."""
    text = page.read_text(encoding="utf-8")
    prose = _FENCE.sub("", text)
    for match in _LINK.finditer(prose):
        if fault := _fault_of_link(page, match["target"]):
            yield fault
    for path in _SOURCE.findall(prose):
        if not any((root / path).exists() for root in (CHECKOUT, CHECKOUT / "trd_engine")):
            yield f"there is no file {path}"
    for match in _FENCE.finditer(text):
        yield from _faults_of_block(match["language"], textwrap.dedent(match["code"]))
    for match in _INLINE.finditer(prose):
        yield from _faults_of_shell(match[1])


def _fault_of_link(page: Path, target: str) -> str | None:
    path, _, anchor = target.partition("#")
    if "://" in target or target.startswith("mailto:"):
        return None
    file = (page.parent / path).resolve() if path else page
    if not file.exists():
        return f"the link {target} leads to no file"
    if anchor and file.suffix == ".md" and anchor not in anchors(file):
        return f"the link {target} leads to no heading of {file.name}"
    return None


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors of the page's headings, as GitHub and the generator make them."""
    prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(prose))
    return {one.strip().replace(" ", "-") for one in words}


def _faults_of_block(language: str, code: str) -> Iterator[str]:
    try:
        if language == "python":
            compile(code, "block", "exec", dont_inherit=True)
        elif language == "json":
            json.loads(code)
        elif language in ("yaml", "yml"):
            yaml.safe_load(code)
        elif language in SHELL:
            yield from _faults_of_shell(code)
    except (SyntaxError, ValueError, yaml.YAMLError) as error:
        yield f"a block of {language} is not valid: {error}: {code[:60]!r}"


def _faults_of_shell(code: str) -> Iterator[str]:
    """Yield the faults of the commands that are ours. Here-documents and output are no commands of ours."""
    code = re.sub(r"<<'?(\w+)'?(.*?)\n.*?^\1$", r"\2", code, flags=re.MULTILINE | re.DOTALL)
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars="|&;")
        lexer.commenters, lexer.whitespace_split = "#", True
        try:
            words = list(lexer)
        except ValueError:  # output with a quotation mark
            continue
        command: list[str] = []
        for word in [*words, ";"]:
            if word in BREAKS:
                yield from _faults_of_command(command)
                command = []
            elif command or not _ASSIGNMENT.match(word):
                command.append(word)


def _faults_of_command(words: list[str]) -> Iterator[str]:
    match words:
        case ["trd", *rest]:
            yield from _faults_of_trd(rest)
        case ["make", *rest]:
            targets = re.findall(r"^([a-z][\w-]*):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            named = [word for word in rest if not re.search(r"[=$]", word)]
            yield from (f"make has no target {word}" for word in named if word not in targets)
        case [python, "-m", module, *rest] if python.endswith("python"):
            yield from _faults_of_module(module, rest)


def _faults_of_trd(words: list[str]) -> Iterator[str]:
    command: Any = typer.main.get_command(app)
    path = "trd"
    while words and not words[0].startswith("-") and hasattr(command, "commands"):
        name = words[0]
        if name not in command.commands:
            yield from () if name.isupper() or "…" in name else (f"{path} has no command {name}",)
            return
        command, words, path = command.commands[name], words[1:], f"{path} {name}"
    known = {"--help"} | {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
    for word in words:
        option = word.partition("=")[0]
        if re.match(r"--?[a-zA-Z]", option) and option not in known:
            yield f"{path} has no option {option}"


def _faults_of_module(module: str, words: list[str]) -> Iterator[str]:
    path = CHECKOUT / module.replace(".", "/")
    sources = [path.with_suffix(".py")] if path.with_suffix(".py").is_file() else list(path.glob("*.py"))
    if not (CHECKOUT / module.partition(".")[0]).is_dir():
        return  # of another package
    if not sources:
        yield f"there is no module {module}"
        return
    text = "".join(source.read_text(encoding="utf-8") for source in sources)
    for word in words:
        if word.startswith("--") and f'"{word.partition("=")[0]}"' not in text:
            yield f"{module} has no option {word}"


def main() -> int:
    """Print the faults of all pages; return 1 if there are any."""
    found = [f"{page.relative_to(CHECKOUT)}: {fault}" for page in pages() for fault in faults(page)]
    sys.stderr.write("".join(f"{line}\n" for line in found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
