"""Token budgets against the models' contexts.

The defaults are the paper's, made for contexts of 40,000 tokens. On a smaller context a budget that the
user did not give is lowered to what fits, and the job says so; one that the user gave is never changed:
if it does not fit, the job is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from contract.job_spec import JobSpec
from contract.sampling_spec import RefineSpec, SamplingSpec
from contract.teacher_spec import ServedTeacher
from contract.views import NoticeView
from service.errors import InvalidRequestError

SOLVE_PROMPT = "sampling.max_prompt_tokens"
SOLVE_NEW = "sampling.max_new_tokens"
REFINE_PROMPT = "refine.max_prompt_tokens"
REFINE_NEW = "refine.max_new_tokens"

_SAMPLING = SamplingSpec()
_REFINE = RefineSpec()


@dataclass(frozen=True)
class Context:
    """A prompt and a completion that must fit one model."""

    prompt: str
    completion: str
    model: str
    """Name of the model in messages: ``student tiny-student``."""
    tokens: int


def contexts(spec: JobSpec, student_tokens: int | None, teacher_tokens: int | None) -> list[Context]:
    """Return what must fit into which model: sampling, refining, and scoring y after both models' prompts.

    Contexts that are not known (None) are left to the engine.
    """
    student = f"student {spec.student}"
    named = f"endpoint {spec.teacher.endpoint}" if isinstance(spec.teacher, ServedTeacher) else spec.teacher
    teacher = student if spec.is_privileged else f"teacher {named}"
    known = {student: student_tokens, teacher: student_tokens if spec.is_privileged else teacher_tokens}
    completion = REFINE_NEW if spec.refines else SOLVE_NEW
    scores_with_more = spec.is_privileged or (spec.refines and spec.resolved_loss.teacher_context == "refine")
    wanted = [
        (SOLVE_PROMPT, SOLVE_NEW, student),
        *([(REFINE_PROMPT, REFINE_NEW, teacher)] if spec.refines else []),
        (REFINE_PROMPT if scores_with_more else SOLVE_PROMPT, completion, teacher),
        (SOLVE_PROMPT, completion, student),
    ]
    return [
        Context(prompt, completion, model, tokens)
        for prompt, completion, model in dict.fromkeys(wanted)
        if (tokens := known[model]) is not None
    ]


def fit_budgets(spec: JobSpec, needed: Iterable[Context]) -> tuple[JobSpec, list[NoticeView]]:
    """Return the spec with the budgets that the user left unset lowered to what fits, and a notice of that.

    Raises `InvalidRequestError` if budgets that the user set do not fit.
    """
    needed = list(needed)
    values = {
        f"{part}.{name}": getattr(getattr(spec, part), name)
        for part in ("sampling", "refine")
        for name in getattr(spec, part).model_fields_set & {"max_prompt_tokens", "max_new_tokens"}
    }
    given = {field: tokens for field, tokens in values.items() if tokens is not None}
    defaults = {
        SOLVE_PROMPT: _SAMPLING.max_prompt_tokens,
        SOLVE_NEW: _SAMPLING.max_new_tokens,
        REFINE_NEW: _REFINE.max_new_tokens,
        REFINE_PROMPT: spec.default_refine_prompt_tokens,
    }
    budgets = {**defaults, **given}
    if _first_broken(budgets, needed) is not None:
        budgets = {**given, **_lowered(spec, given, defaults, needed)}
    broken = _first_broken(budgets, needed)
    if broken is not None:
        raise _too_long(broken, budgets, given)
    lowered = {field: tokens for field, tokens in budgets.items() if tokens < defaults[field] and field not in given}
    notices = []
    if lowered:
        smallest = min(needed, key=lambda c: c.tokens)
        shown = [f"{field} = {tokens}, not the default of {defaults[field]}" for field, tokens in lowered.items()]
        notices = [
            NoticeView(
                code="budget_lowered",
                message=f"{len(lowered)} token budgets are lower than the defaults: the context of the "
                f"{smallest.model} is {smallest.tokens} tokens ({'; '.join(shown)})",
                remedy="check that problems and answers fit these budgets, and set the fields to the values you want",
                count=len(lowered),
                example=shown[0],
            )
        ]
    sampling = {"max_prompt_tokens": budgets[SOLVE_PROMPT], "max_new_tokens": budgets[SOLVE_NEW]}
    refine = {"max_prompt_tokens": budgets[REFINE_PROMPT], "max_new_tokens": budgets[REFINE_NEW]}
    return spec.model_copy(
        update={
            "sampling": spec.sampling.model_copy(update=sampling),
            "refine": spec.refine.model_copy(update=refine),
        }
    ), notices


def _lowered(
    spec: JobSpec, given: Mapping[str, int], defaults: Mapping[str, int], needed: list[Context]
) -> dict[str, int]:
    """Return shares of the smallest context, following the paper: the refining prompt holds problem, reference and a
    whole attempt, and the refined trajectory may be as long as the attempt."""
    smallest = min(context.tokens for context in needed)
    problem = min(defaults[SOLVE_PROMPT], max(1, smallest // 8))
    reference = 2 * problem if spec.is_privileged else 0
    attempts = 2 if spec.refines else 1  # in the context at once: y_o and y_r, or y_o alone
    attempt = max(1, (smallest - problem - reference) // attempts)
    shares = {SOLVE_PROMPT: problem, SOLVE_NEW: attempt, REFINE_NEW: attempt, REFINE_PROMPT: smallest}
    used = {field for context in needed for field in (context.prompt, context.completion)}
    chosen = {**{field: defaults[field] for field in defaults if field not in used}, **given}
    for field, share in shares.items():
        if field not in chosen:
            chosen[field] = max(1, min(defaults[field], share, *_room(field, chosen, needed)))
    return chosen


def _room(field: str, chosen: Mapping[str, int], needed: list[Context]) -> list[int]:
    """Return what each context leaves to `field` after the budgets chosen so far."""
    pairs = [(c.prompt, c.completion, c.tokens) for c in needed] + [(c.completion, c.prompt, c.tokens) for c in needed]
    return [tokens - chosen[other] for name, other, tokens in pairs if name == field and other in chosen] or [2**31]


def _first_broken(budgets: Mapping[str, int], needed: list[Context]) -> Context | None:
    return next((c for c in needed if budgets[c.prompt] + budgets[c.completion] > c.tokens), None)


def _too_long(broken: Context, budgets: Mapping[str, int], given: Mapping[str, int]) -> InvalidRequestError:
    field, other = broken.completion, broken.prompt
    if field not in given or budgets[other] >= broken.tokens:
        field, other = other, field
    prompt, completion = budgets[broken.prompt], budgets[broken.completion]
    room = broken.tokens - min(budgets[other], broken.tokens - 1)
    return InvalidRequestError(
        f"{field} = {budgets[field]}: {broken.prompt} + {broken.completion} = {prompt} + {completion} = "
        f"{prompt + completion} tokens, but the context of the {broken.model} is {broken.tokens}; "
        f"lower {field} to at most {room}, or leave it out",
        code="context_too_long",
        param=field,
    )
