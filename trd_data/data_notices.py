"""Findings about the rows of a file that deserve a look before they cost GPU hours, gathered in one pass.

What is kept is bounded: counts, one example each, and two hashes a row to compare equal problems.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from trd_data.answers import comparable_answer
from trd_data.column_names import holds_image, part_of_problem
from trd_data.errors import RowError
from trd_data.notices import Notice
from trd_data.problems import Problem
from trd_data.shapes import known
from trd_data.shapes.choice import LETTERS, OPTIONS, has_options, listed_options
from trd_data.shapes.choose import TASKS, Reading, columns_needed
from trd_data.shapes.fields import Shape

_MAX_EXAMPLE = 200  # characters
_MAX_COMPARED = 2_000_000
"""Problems that are compared with each other; the others are not."""
_MAX_COLUMNS = 200
"""Columns of a row, and of a file, that are watched: each of a row's is searched for in its problem."""
_MIN_SENTENCE, _MIN_SPACES = 40, 5
"""Least characters and spaces of a text that may be a part of a problem, whatever its column is called."""
_MIN_SHARE = 0.5
"""Least share of rows in which such a column must have such a text, and another one than before."""
_OPTION_COLUMNS = frozenset({*OPTIONS, *LETTERS})

_LATEX = tuple(
    (character, re.compile(character + f"(?:{rest})"))
    for character, rest in (
        *((character, "[a-z]") for character in "\f\b\a\v"),
        (
            "\t",
            r"(?:frac|imes|heta|au|riangle|ilde|herefore|binom)(?![a-z])|ext(?:bf|it|rm|tt)?\{|an(?=[\\({^])|o(?=\\)",
        ),
        ("\r", r"(?:ight|ho|angle|floor|ceil|brace)(?![a-z])"),
        ("\n", r"(?:eq(?=[ \\{}$\d])|abla|otin|subseteq|leqs?l?a?n?t?|geqs?l?a?n?t?)(?![a-z])"),
    )
)
r"""Control characters that JSON and Python make of one backslash before a command of LaTeX such as ``\frac``, with what
follows them."""


def notable_columns(columns: Mapping[str, str]) -> Callable[[str, bool], bool]:
    """Return whether a column of a file, which may hold text, is read by a shape or worth a notice if it is not."""
    needed = columns_needed(columns)

    def is_notable(name: str, holds_text: bool) -> bool:
        return name in needed or (part_of_problem(name) is not False if holds_text else part_of_problem(name) is True)

    return is_notable


@dataclass
class _Found:
    """Rows with the same finding."""

    count: int = 0
    example: str = ""
    tasks: set[str] = field(default_factory=set)

    def add(self, tasks: Iterable[str], example: str) -> None:
        self.count += 1
        self.tasks.update(tasks)
        self.example = self.example or _printable(example)

    def notice(self, code: str, message: str, remedy: str) -> Notice:
        tasks = tuple(task for task in TASKS if task in self.tasks)
        return Notice(code, message, remedy, self.count, self.example, None if len(tasks) == len(TASKS) else tasks)


class DataNotices:
    """Takes what each row means to each task, and says what is odd about the file."""

    def __init__(self) -> None:
        self._num_rows = 0
        self._parts: dict[str, _Found] = {}
        """Rows, by column, that have a part of the problem there, by its name."""
        self._sentences: dict[str, _Found] = {}
        """Rows, by column, that have a text there that may be one."""
        self._different: dict[str, set[int]] = defaultdict(set)
        self._choices, self._latex, self._conflicts = _Found(), _Found(), _Found()
        self._answers: dict[bool, dict[int, tuple[int, int]]] = {True: {}, False: {}}
        """By whether the task is choice, and by the hash of the problem: the hash of its answer, and the row."""

    def add(self, number: int, by_task: Mapping[str, Reading]) -> None:
        """Take a row; its texts are not kept."""
        self._num_rows += 1
        groups: dict[int, list[str]] = defaultdict(list)
        for task, reading in by_task.items():
            if reading.problem is not None:
                groups[id(reading)].append(task)
        for tasks in groups.values():
            self._look_at_columns(number, by_task[tasks[0]], tasks)
        texts = [task for task in ("exact", "math") if task in by_task and by_task[task].problem is not None]
        choice = [task for task in ("choice",) if task in by_task and by_task[task].problem is not None]
        for tasks in (texts, choice):
            if tasks:
                self._compare(number, by_task[tasks[0]].problem, tasks)
        if readable := [task for tasks in groups.values() for task in tasks if task != "code"]:
            self._look_for_latex(number, by_task[readable[0]].problem, readable)

    def _look_at_columns(self, number: int, reading: Reading, tasks: list[str]) -> None:
        assert reading.problem is not None
        assert reading.shape is not None
        if reading.shape is not known.CHOICE and has_options(reading.there) and not _lists_options(reading):
            name = next(name for name in (*OPTIONS, *LETTERS) if name in reading.there)
            self._choices.add(tasks, f"row {number}: {name} = {reading.row[name]}")
        for name, is_part in _unread(reading.shape, reading.there):
            value = reading.row[name]
            if not _adds_something(name, value, reading.problem, is_part is True):
                continue
            found = self._parts if is_part else self._sentences
            if name not in found:
                if len(self._parts) + len(self._sentences) >= _MAX_COLUMNS:
                    continue
                found[name] = _Found()
            found[name].add(tasks, f"row {number}: {name} = {value if isinstance(value, str) else _json(value)}")
            if is_part is None:
                self._different[name].add(hash(value))

    def _compare(self, number: int, problem: Problem | None, tasks: list[str]) -> None:
        assert problem is not None
        answers = self._answers[tasks == ["choice"]]
        if not problem.answer or len(answers) >= _MAX_COMPARED:
            return
        answer = hash(comparable_answer(problem.answer))
        earlier, earlier_number = answers.setdefault(hash(problem.problem.strip()), (answer, number))
        if answer != earlier:
            shown = " ".join(problem.problem[:100].split())
            self._conflicts.add(tasks, f"row {number} asks the same as row {earlier_number}: {shown}")

    def _look_for_latex(self, number: int, problem: Problem | None, tasks: list[str]) -> None:
        assert problem is not None
        for name in ("problem", "answer", "solution"):
            text = getattr(problem, name) or ""
            for character, command in _LATEX:
                if character in text and (found := command.search(text)) is not None:
                    around = text[max(0, found.start() - 30) : found.end() + 30]
                    self._latex.add(tasks, f"row {number}: {name} has {_json(around)}")
                    return

    def notices(self) -> Iterator[Notice]:
        """Yield what was found."""
        yield from self._unread_columns()
        if self._choices.count:
            yield self._choices.notice(
                "choices_unread",
                "the rows have options that the task does not show to the model",
                "use task choice, or write the options into the problem and the right one's text as the answer",
            )
        if self._conflicts.count:
            yield self._conflicts.notice(
                "conflicting_answers",
                "rows ask the same as earlier ones, word for word, and have other answers",
                "see whether a part of the problem is in a column that is not read; else keep one row of each problem",
            )
        if self._latex.count:
            yield self._latex.notice(
                "escaped_latex",
                "texts have control characters in front of letters, which single backslashes before commands such as "
                "\\frac and \\times turn into",
                "write the file with a JSON library, or each backslash twice",
            )

    def _unread_columns(self) -> Iterator[Notice]:
        found = dict(self._parts)
        for name, sentences in self._sentences.items():
            least = _MIN_SHARE * self._num_rows
            if sentences.count >= least and len(self._different[name]) >= _MIN_SHARE * sentences.count:
                found[name] = sentences
        by_tasks: dict[frozenset[str], list[str]] = defaultdict(list)
        for name, rows in found.items():
            by_tasks[frozenset(rows.tasks)].append(name)
        for names in by_tasks.values():
            most = max((found[name] for name in names), key=lambda rows: rows.count)
            shown = ", ".join(_printable(name, 60) for name in names[:10])
            yield most.notice(
                "unread_columns",
                f"columns that may be a part of the problem are not read: {shown}",
                'map the column with columns, as {"input": "context", "instruction": "question"}, which joins two; '
                "or write it into the problem; or remove it",
            )


@lru_cache(maxsize=1000)
def _unread(shape: Shape, there: frozenset[str]) -> list[tuple[str, bool | None]]:
    """Return the columns that a shape does not read and that may be a part of the problem: surely, or perhaps."""
    unread = there - shape.columns_read(there) - _OPTION_COLUMNS - set(shape.ignores)
    found = [(name, part_of_problem(name)) for name in sorted(unread) if part_of_problem(name) is not False]
    return found[:_MAX_COLUMNS]


def _adds_something(name: str, value: object, problem: Problem, is_part: bool) -> bool:
    """Return whether a value that is not read may be a part of the problem."""
    if not isinstance(value, str):
        return is_part and isinstance(value, list | dict | bytes) and bool(value)
    text = value.strip()
    if not text or text in problem.problem or (problem.solution is not None and text in problem.solution):
        return False
    if text.startswith(("http://", "https://")) and not holds_image(name):
        return False
    if is_part:
        return problem.problem.strip() not in text
    return len(text) >= _MIN_SENTENCE and text.count(" ") >= _MIN_SPACES and problem.problem.strip() not in text


def _lists_options(reading: Reading) -> bool:
    assert reading.problem is not None
    try:
        return all(option.strip() in reading.problem.problem for _, option in listed_options(reading.row))
    except RowError:
        return False


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _printable(text: str, limit: int = _MAX_EXAMPLE) -> str:
    """Return the start of a text on one line, without characters that a database or a terminal cannot take."""
    cut = " ".join(text[: 2 * limit].split())
    cut = cut if len(cut) <= limit else cut[: limit - 1] + "…"
    return "".join(character if character.isprintable() else "\ufffd" for character in cut)
