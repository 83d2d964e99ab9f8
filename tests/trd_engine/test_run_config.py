"""The engine's spec by itself: what it fills in, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.trd_engine.tiny_runs import spec
from trd_engine.config import RunConfig


def config(**changes: Any) -> RunConfig:
    return RunConfig.model_validate(spec(Path(), **changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss": {}}, "refine"),
        ({"loss": {"token_clip": 0.1}}, "refine"),
        ({"loss": {"teacher_context": "vanilla"}}, "vanilla"),
        ({"mode": "opd", "loss": {}}, "vanilla"),
        ({"mode": "opsd", "teacher": None, "loss": {}}, "vanilla"),
    ],
)
def test_a_refined_text_is_scored_in_its_own_context_unless_asked_otherwise(
    changes: dict[str, Any], expected: str
) -> None:
    assert config(**changes).loss.teacher_context == expected


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ({"solve": "Solve it."}, r"solve: the template lacks \{problem\}"),
        ({"refine": "Improve {attempt}."}, r"refine: the template lacks \{problem\}"),
        ({"privileged": "{problem}"}, r"privileged: the template lacks \{solution\}"),
        ({"privileged_refine": "Improve."}, r"privileged_refine: the template lacks \{problem\} and \{solution\}"),
    ],
)
def test_a_template_without_its_problem_is_refused(prompts: dict[str, str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        config(prompts=prompts)
