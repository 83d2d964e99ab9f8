r"""The built-in prompt templates of each task, in our own words.

Each family is four requests around one way to give the final answer. A refinement must stand alone: it is
trained on as an answer to the bare problem, so it may mention neither the attempt nor the reference.
"""

from __future__ import annotations

from trd_engine.tasks.protocol import PromptTemplates

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
"""Each task's, by its name in a spec."""
