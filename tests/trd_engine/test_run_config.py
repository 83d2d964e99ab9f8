"""The engine's spec by itself: what it fills in, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from tests.trd_engine.tiny_runs import spec
from trd_engine import config as parts
from trd_engine.config import RunConfig, load_config, parse_config
from trd_engine.runtime.errors import SpecError

POOL = {"name": "fleet", "base_url": "https://fleet.test/v1"}


def config(**changes: Any) -> RunConfig:
    return RunConfig.model_validate(spec(Path(), **changes))


def test_every_field_of_every_part_has_a_description() -> None:
    models = [m for m in vars(parts).values() if isinstance(m, type) and issubclass(m, BaseModel)]
    assert RunConfig in models
    fields = {f"{m.__name__}.{name}": field.description or "" for m in models for name, field in m.model_fields.items()}
    assert len(fields) > 100
    assert [name for name, description in fields.items() if len(description) < 10] == []


def test_an_invalid_spec_names_each_field_its_value_and_what_to_do() -> None:
    document = spec(Path(), rounds=0, loss={"divergence": "jsd", "support": "top_k"}, sampling={"top_q": 1})
    with pytest.raises(SpecError) as caught:
        parse_config(document)
    message = str(caught.value)
    assert "rounds: Input should be greater than or equal to 1 (given: 0)" in message
    assert "loss: support = top_k: jsd is defined on the full vocabulary only; use full" in message
    assert "sampling.top_q: Extra inputs are not permitted (given: 1)" in message


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
def test_a_refined_text_is_scored_in_its_own_context_by_default(changes: dict[str, Any], expected: str) -> None:
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


def test_a_field_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text('{"mode": "opsd",\n "seed": 1,\n "seed": 2}', encoding="utf-8")
    with pytest.raises(SpecError, match="key 'seed' in line 3 is there already, in line 2; keep one"):
        load_config(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora": None}, "sampling.pool = fleet: servers take adapters"),
        ({"refine": {}}, "name its servers in refine.pool"),
        ({"mode": "opd", "loss": {}}, "refine.pool = judges is for a teacher model in mode trd"),
        ({"sampling": {}}, "refine.pool = judges is for .* beside a sampling.pool"),
        ({"sampling": {"pool": POOL, "engine": "transformers"}}, "pool = fleet: its servers sample"),
        ({"sampling": {"pool": POOL, "placement": "separate"}}, "pool = fleet: its servers sample"),
    ],
)
def test_a_pool_needs_adapters_and_servers_for_each_model(changes: dict[str, Any], words: str) -> None:
    fitting = {"lora": {}, "sampling": {"pool": POOL}, "refine": {"pool": {**POOL, "name": "judges"}}}
    assert config(**fitting).sampling.pool is not None
    assert config(**{**fitting, "teacher": None, "refine": {}}).refine.pool is None
    with pytest.raises(ValidationError, match=words):
        config(**{**fitting, **changes})
