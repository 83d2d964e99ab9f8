"""New weights reach the sampler, and it is noticed when they do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.trd_engine.tiny_runs import MODELS
from trd_engine.errors import SamplerDriftError
from trd_engine.generation.transformers import TransformersGenerator
from trd_engine.generation.vllm import VllmGenerator
from trd_engine.losses import Divergence
from trd_engine.models import load_model, load_tokenizer
from trd_engine.prompts import PromptBuilder
from trd_engine.sampler_gap import measure_sampler_gap
from trd_engine.samplers import BorrowedWeights, Samplers, ServedWeights
from trd_engine.step import ScoringSetup
from trd_engine.tasks import load_task
from trd_engine.teacher import Teacher
from trd_engine.types import GenerationRequest, Problem, SamplingSettings

STUDENT = MODELS / "tiny-student"
SAMPLING = SamplingSettings(0.6, 0.95, 20, 64, (load_tokenizer(str(STUDENT)).eos_token_id,))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    builder = PromptBuilder(load_tokenizer(str(STUDENT)), replace(load_task("exact").prompts, solve="{problem}"))
    return [builder.solve(Problem(p, p, "0")) for p in ("12+3*2-4+5-6", "47#8+2-3*4+5", "88-7+4*2+3*3", "11-4#4+3+8-4")]


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmGenerator]:
    generator = VllmGenerator(STUDENT, dtype=torch.float32, max_model_len=256)
    yield generator
    generator.close()


def make_setup(model_name: str) -> ScoringSetup:
    model = load_model(str(MODELS / model_name), dtype=torch.float32, device=CPU)
    return ScoringSetup(model, Teacher(model), Divergence(), torch.float32, ())


def test_a_full_student_reaches_the_engine_and_the_step0_weights_come_back(
    engine: VllmGenerator, prompts: list[tuple[int, ...]], tmp_path: Path
) -> None:
    """The trained weights stand for a trained student: the teacher's, written as a sync writes them."""
    setup = make_setup("tiny-student")
    switch = ServedWeights(engine, setup.student, step0_folder=STUDENT, sync_folder=tmp_path / "sync")
    samplers = Samplers(engine, engine, switch, SAMPLING, SAMPLING)
    requests = [GenerationRequest(p, i) for i, p in enumerate(prompts)]
    before = samplers.sample_student(requests)
    assert measure_sampler_gap(samplers, setup, prompts, seed=0) < 1e-5

    trained = make_setup("tiny-teacher").student.state_dict()
    setup.student.load_state_dict(trained)
    with pytest.raises(SamplerDriftError, match="does not answer with the weights that are trained"):
        measure_sampler_gap(samplers, setup, prompts, seed=0)

    samplers.student_changed()
    assert measure_sampler_gap(samplers, setup, prompts, seed=0) < 1e-5
    assert samplers.sample_student(requests) != before
    assert samplers.sample_teacher(requests) == before
    assert samplers.sample_student(requests) != before


def test_a_borrowed_sampler_is_the_trainer_itself(prompts: list[tuple[int, ...]]) -> None:
    setup = make_setup("tiny-student")
    generator = TransformersGenerator(setup.student, load_tokenizer(str(STUDENT)))
    samplers = Samplers(generator, generator, BorrowedWeights(), SAMPLING, SAMPLING)
    assert measure_sampler_gap(samplers, setup, prompts, seed=0) < 1e-5
    with torch.no_grad():
        setup.student.get_output_embeddings().weight.mul_(1.1)
    assert measure_sampler_gap(samplers, setup, prompts, seed=0) < 1e-5
