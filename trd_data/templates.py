r"""The prompt templates: each task's built-in ones, and which of a spec's, a model's and a task's apply.

Each task has four requests that end in one way to give the final answer. A refinement must stand alone: the student
is trained on it as an answer to the bare problem, so it may mention neither the attempt nor the reference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from trd_data.errors import PromptError

MODEL_PROMPTS_FILE = "trd_prompts.json"
"""A model folder's own templates, for models that know no others: an object with fields of `PromptTemplates`."""

_PLACEHOLDER = re.compile(r"\{(problem|solution|attempt)\}")


@dataclass(frozen=True)
class PromptTemplates:
    """User messages with the placeholders {problem}, {solution} and {attempt}, which `fill` replaces."""

    solve: str
    """The student's prompt, in which it is always trained."""
    privileged: str
    """The teacher's prompt if it sees the reference solution y*."""
    refine: str
    """Asks for y_r, given the rollout as {attempt}."""
    privileged_refine: str
    """Asks for y_r, given the rollout and the reference."""
    truncation_notice: str
    """Replaces the cut tail of an attempt or a reference."""


def fill(template: str, *, problem: str = "", solution: str = "", attempt: str = "") -> str:
    """Return `template` with its placeholders replaced in one pass, so that braces inside the texts are kept."""
    values = {"problem": problem, "solution": solution, "attempt": attempt}
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], template)


def choose_templates(
    task: PromptTemplates, model_folder: str, chosen: Mapping[str, str | None] | None = None
) -> PromptTemplates:
    """Return the spec's templates, `chosen`; the model folder's for those that are None; else the task's.

    Raises `PromptError` if the model's file of templates is not one.
    """
    explicit = {name: text for name, text in (chosen or {}).items() if text is not None}
    return replace(task, **{**_model_templates(Path(model_folder) / MODEL_PROMPTS_FILE), **explicit})


def _model_templates(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    known = [field.name for field in fields(PromptTemplates)]
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PromptError(f"{path.name} of the model cannot be read: {error}") from error
    if not isinstance(document, Mapping) or not set(document) <= set(known):
        there = f"has {sorted(document)}" if isinstance(document, Mapping) else "is not an object"
        raise PromptError(f"{path.name} of the model {there}; its fields may be {', '.join(known)}")
    return {name: str(text) for name, text in document.items()}


_TRUNCATION_NOTICE = "\n[The rest is left out here for length.]"

_PRIVILEGED = """\
{problem}

Below is a correct solution of this problem, for your understanding only.

--- correct solution ---
{solution}
--- end of the correct solution ---

Read it until you see why each step holds. Then set it aside and solve the problem afresh, with your own \
reasoning in your own words, as if you had found the way yourself. """

_REFINE = """\
Here are a problem and an attempt at solving it. The attempt may be right, partly right or wrong.

--- problem ---
{problem}
--- end of the problem ---

--- attempt ---
{attempt}
--- end of the attempt ---

Check the attempt step by step. Then write the solution that its author should have written: keep its \
approach, its style and its wording wherever they are right, and from the first flaw on put what is correct \
and needed in place of what is not. Leave out detours, doubts and repetitions.

Write a complete solution that a reader who sees only the problem can follow from beginning to end. Do not \
comment on the attempt, and do not mention that there was one. """

_PRIVILEGED_REFINE = """\
Here are a problem, a correct solution of it, and an attempt by someone else. The attempt may be right, \
partly right or wrong.

--- problem ---
{problem}
--- end of the problem ---

--- correct solution ---
{solution}
--- end of the correct solution ---

--- attempt ---
{attempt}
--- end of the attempt ---

Use the correct solution to understand the problem and to find where the attempt goes astray. Then write the \
solution that the attempt's author should have written: keep the attempt's approach, style and wording \
wherever they are right, and from the first flaw on carry it through with sound reasoning. Leave out detours, \
doubts and repetitions.

Write a complete solution that a reader who sees only the problem can follow from beginning to end, with every \
step justified on its own. Do not quote the correct solution, and mention neither it nor the attempt. """


def _family(solve: str, ending: str) -> PromptTemplates:
    return PromptTemplates(
        solve=f"{{problem}}\n\n{solve} {ending}",
        privileged=_PRIVILEGED + ending,
        refine=_REFINE + ending,
        privileged_refine=_PRIVILEGED_REFINE + ending,
        truncation_notice=_TRUNCATION_NOTICE,
    )


MATH = _family(
    "Work this out step by step, and show the reasoning behind each step.",
    "End with the final answer, and nothing but the answer, inside \\boxed{}.",
)
EXACT = _family(
    "Think the task through step by step.",
    "End with the final answer inside \\boxed{}, written exactly in the form that is asked for.",
)
CHOICE = _family(
    "Weigh the options step by step, and say why the others fall away.",
    "End with the letter of the right option inside \\boxed{}.",
)
CODE = _family(
    "Solve this in Python 3. First explain briefly how your solution works and why it is correct and fast "
    "enough; then write the program.",
    "Put the whole program, with its imports, into a single ```python code block at the end. If the problem "
    "speaks of standard input and output, read the input and print the output; otherwise define the function "
    "or class that is asked for.",
)
REASONING_GYM = _family(
    "Reason step by step.",
    "End with the final answer between <answer> and </answer>, in the form that is asked for and with nothing else "
    "between the tags.",
)

BY_TASK = {"math": MATH, "exact": EXACT, "choice": CHOICE, "code": CODE, "reasoning_gym": REASONING_GYM}
"""The built-in templates by the task's name in a spec."""


@dataclass(frozen=True)
class PreviewRequest:
    """What a preview renders; see `trd_data.preview`."""

    student: str
    """Folder of the student."""
    teacher: str | None
    """Folder of the teacher; None if the student is its own."""
    task: str
    count: int
    """Number of rows."""
    solve_limit: int
    """Token budget of the solving prompt."""
    refine_limit: int
    """Token budget of the teacher's prompts."""
    columns: Mapping[str, str] | None = None
