from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.job_spec import JobSpec
from contract.views import NoticeView
from service.errors import InvalidRequestError
from service.models.budgets import contexts, fit_budgets


def spec(mode: str = "trd", *, teacher: bool = True, **changes: Any) -> JobSpec:
    body = {"mode": mode, "student": "S", "teacher": "T" if teacher else None, "dataset": "ds_1", **changes}
    return JobSpec.model_validate(body)


def fit(job: JobSpec, student: int | None, teacher: int | None = None) -> tuple[JobSpec, list[NoticeView]]:
    return fit_budgets(job, contexts(job, student, teacher))


def budgets(job: JobSpec) -> tuple[int, int, int | None, int]:
    sampling, refine = job.sampling, job.refine
    return sampling.max_prompt_tokens, sampling.max_new_tokens, refine.max_prompt_tokens, refine.max_new_tokens


def test_the_papers_budgets_stay_where_they_fit() -> None:
    for job, prompt in ((spec(), 18_432), (spec(teacher=False), 22_528)):
        fitted, notices = fit(job, 40_960, 40_960)
        assert budgets(fitted) == (2048, 16_384, prompt, 16_384)
        assert notices == []


def test_unknown_contexts_are_left_to_the_engine() -> None:
    fitted, notices = fit(spec(), None, None)
    assert budgets(fitted) == (2048, 16_384, 18_432, 16_384)
    assert notices == []


def test_defaults_are_lowered_to_a_small_context_and_said_so() -> None:
    fitted, notices = fit(spec(), 1024, 1024)
    prompt, new, refine_prompt, refine_new = budgets(fitted)
    assert refine_prompt is not None
    assert refine_prompt >= prompt + new, "a whole attempt fits the refining prompt"
    assert refine_prompt + refine_new <= 1024
    (notice,) = notices
    assert (notice.code, notice.count) == ("budget_lowered", 4)
    assert f"sampling.max_new_tokens = {new}, not the default of 16384" in notice.message
    assert "the context of the student S is 1024 tokens" in notice.message


KINDS = st.sampled_from([("trd", True), ("trd", False), ("opd", True), ("opsd", False)])


@given(KINDS, st.integers(8, 50_000), st.integers(8, 50_000))
def test_lowered_defaults_always_fit(kind: tuple[str, bool], student: int, teacher: int) -> None:
    job = spec(kind[0], teacher=kind[1])
    fitted, _ = fit(job, student, teacher)
    again, notices = fit(fitted, student, teacher)
    assert budgets(again) == budgets(fitted)
    assert notices == []
    assert all(tokens is not None and tokens >= 1 for tokens in budgets(fitted))
    assert fitted.resolved().sampling == fitted.sampling


@given(KINDS, st.integers(100, 50_000), st.integers(1, 99))
def test_what_the_user_gave_is_kept(kind: tuple[str, bool], context: int, given_new: int) -> None:
    job = spec(kind[0], teacher=kind[1], sampling={"max_new_tokens": given_new})
    fitted, _ = fit(job, context, context)
    assert fitted.sampling.max_new_tokens == given_new


@pytest.mark.parametrize(
    ("job", "student", "teacher", "param", "words"),
    [
        (
            spec(sampling={"max_prompt_tokens": 500, "max_new_tokens": 600}),
            1024,
            4096,
            "sampling.max_new_tokens",
            "500 + 600 = 1100 tokens, but the context of the student S is 1024; "
            "lower sampling.max_new_tokens to at most 524",
        ),
        (
            spec(refine={"max_prompt_tokens": 3000, "max_new_tokens": 1000}),
            4096,
            2048,
            "refine.max_prompt_tokens",
            "the context of the teacher T is 2048; lower refine.max_prompt_tokens to at most 1048",
        ),
        (
            spec(teacher=False, refine={"max_prompt_tokens": 900, "max_new_tokens": 200}),
            1024,
            None,
            "refine.max_new_tokens",
            "the context of the student S is 1024",
        ),
        (
            spec(sampling={"max_prompt_tokens": 1024}),
            1024,
            4096,
            "sampling.max_prompt_tokens",
            "lower sampling.max_prompt_tokens to at most",
        ),
        (
            spec("opd", sampling={"max_prompt_tokens": 900, "max_new_tokens": 900}),
            4096,
            1024,
            "sampling.max_new_tokens",
            "teacher T is 1024",
        ),
        (
            spec("opsd", teacher=False, refine={"max_prompt_tokens": 1024}),
            1024,
            None,
            "refine.max_prompt_tokens",
            "student S is 1024",
        ),
    ],
)
def test_budgets_that_the_user_gave_are_refused_where_they_do_not_fit(
    job: JobSpec, student: int, teacher: int | None, param: str, words: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        fit(job, student, teacher)
    assert caught.value.code == "context_too_long"
    assert caught.value.param == param
    assert words in caught.value.message
