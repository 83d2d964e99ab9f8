"""New weights reach the sampler, and it is noticed when they do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trd_engine.tiny_runs import MODELS
from trd_data.prompts import BuiltPrompt, PromptBuilder
from trd_engine.config import LoraConfig
from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.evaluation import sampler_gap
from trd_engine.evaluation.sampler_gap import measure_sampler_gap
from trd_engine.generation.hf.generator import TransformersGenerator
from trd_engine.generation.samplers import Samplers
from trd_engine.generation.vllm.generator import VllmGenerator, VllmSettings
from trd_engine.generation.weight_sync import ServedWeights
from trd_engine.models.attention.packing import hidden_states
from trd_engine.models.loading import load_model, load_tokenizer
from trd_engine.models.lora import STUDENT_ADAPTER, TEACHER_ADAPTER, adapter_pairs, add_adapter, add_teacher_adapter
from trd_engine.runtime.errors import SamplerDriftError
from trd_engine.tasks.registry import load_task
from trd_engine.teachers.local import Teacher
from trd_engine.types import Completion, GenerationRequest, Problem, SamplingSettings

STUDENT = MODELS / "tiny-student"
SAMPLING = SamplingSettings(0.6, 0.95, 20, 64, (load_tokenizer(str(STUDENT)).eos_token_id,))
CPU = torch.device("cpu")

pytestmark = pytest.mark.xdist_group("vllm")


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    builder = PromptBuilder(load_tokenizer(str(STUDENT)), replace(load_task("exact").prompts, solve="{problem}"))
    return [builder.solve(Problem(p, p, "0")) for p in ("12+3*2-4+5-6", "47#8+2-3*4+5", "88-7+4*2+3*3", "11-4#4+3+8-4")]


@pytest.fixture(scope="module")
def engine_of_the_module() -> Iterator[VllmGenerator]:
    generator = VllmGenerator(STUDENT, VllmSettings(dtype=torch.float32, max_model_len=256, lora_rank=4))
    yield generator
    generator.close()


@pytest.fixture
def engine(engine_of_the_module: VllmGenerator) -> VllmGenerator:
    """With the student's weights and no adapter, whatever the test before left in it."""
    engine_of_the_module.use_adapter(None)
    engine_of_the_module.load_weights(STUDENT)
    return engine_of_the_module


def make_setup(model_name: str) -> ModelPair:
    model = load_model(str(MODELS / model_name), dtype=torch.float32, device=CPU)
    return ModelPair(model, Teacher(model), Divergence(), torch.float32, ())


def refined(samplers: Samplers, requests: list[GenerationRequest]) -> list[Completion]:
    prompts = [BuiltPrompt(request.prompt_token_ids) for request in requests]
    return samplers.refine(prompts, [request.seed for request in requests])


def test_a_full_student_reaches_the_engine_and_the_step0_weights_come_back(
    engine: VllmGenerator, prompts: list[tuple[int, ...]], tmp_path: Path
) -> None:
    """The trained weights stand for a trained student: the teacher's, written as a sync writes them."""
    models = make_setup("tiny-student")
    switch = ServedWeights(engine, models.student, step0_folder=STUDENT, sync_folder=tmp_path / "sync")
    samplers = Samplers(engine, engine, switch, SAMPLING, SAMPLING)
    requests = [GenerationRequest(p, i) for i, p in enumerate(prompts)]
    before = samplers.sample_student(requests)
    assert measure_sampler_gap(samplers, models, prompts, seed=0) < 1e-5

    trained = make_setup("tiny-teacher").student.state_dict()
    models.student.load_state_dict(trained)
    with pytest.raises(SamplerDriftError, match="does not answer with the weights that are trained"):
        measure_sampler_gap(samplers, models, prompts, seed=0)

    samplers.student_changed()
    assert measure_sampler_gap(samplers, models, prompts, seed=0) < 1e-5
    assert samplers.sample_student(requests) != before
    assert refined(samplers, requests) == before
    assert samplers.sample_student(requests) != before


class _Silent(TransformersGenerator):
    """Returns nothing for the first request, as if its first id were no token."""

    def generate(self, *arguments: Any, **options: Any) -> list[Completion]:
        first, *others = super().generate(*arguments, **options)
        return [replace(first, token_ids=(), text="", logprobs=()), *others]


def test_an_empty_probe_is_passed_over_with_a_pass_of_its_own(
    prompts: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of several processes must make as many passes as the others, or they wait forever."""
    models = make_setup("tiny-student")
    passes: list[object] = []
    generator = _Silent(models.student, load_tokenizer(str(STUDENT)))
    samplers = Samplers(generator, generator, None, SAMPLING, SAMPLING)

    def counted(*arguments: Any) -> torch.Tensor:
        passes.append(arguments)
        return hidden_states(*arguments)

    monkeypatch.setattr(sampler_gap, "hidden_states", counted)
    assert measure_sampler_gap(samplers, models, prompts, seed=0) < 1e-5
    assert len(passes) == len(prompts)


def test_one_engine_serves_a_student_and_its_moving_teacher(
    engine: VllmGenerator, prompts: list[tuple[int, ...]], tmp_path: Path
) -> None:
    """Two adapters on one base: each role's greedy texts are those of the live module with its adapter."""
    model = add_adapter(load_model(str(STUDENT), dtype=torch.float32, device=CPU), LoraConfig(rank=4, alpha=8), seed=0)
    add_teacher_adapter(model)
    switch = ServedWeights(engine, model, step0_folder=STUDENT, sync_folder=tmp_path, teacher=model)
    greedy = replace(SAMPLING, temperature=0.0)
    samplers = Samplers(engine, engine, switch, greedy, greedy)
    requests = [GenerationRequest(p, i) for i, p in enumerate(prompts)]
    step0 = refined(samplers, requests)
    assert samplers.sample_student(requests) == step0
    with torch.no_grad():
        for number, (teacher, student) in enumerate(adapter_pairs(model).values()):
            noise = torch.Generator().manual_seed(number)
            teacher.add_(torch.randn(teacher.shape, generator=noise), alpha=0.05)
            student.add_(torch.randn(student.shape, generator=noise), alpha=0.05)
    samplers.student_changed()
    samplers.teacher_changed()
    texts = {}
    for role, adapter in ((Samplers.sample_student, STUDENT_ADAPTER), (refined, TEACHER_ADAPTER)):
        live = TransformersGenerator(model, load_tokenizer(str(STUDENT)), adapter=adapter)
        texts[adapter] = [c.text for c in role(samplers, requests)]
        assert texts[adapter] == [c.text for c in live.generate(requests, greedy)]
    assert texts[STUDENT_ADAPTER] != texts[TEACHER_ADAPTER]


def test_a_probe_is_no_longer_than_what_the_run_samples(prompts: list[tuple[int, ...]]) -> None:
    """A sampler is made for the run's budgets, and refuses more."""
    models = make_setup("tiny-student")
    models.student.config.max_position_embeddings = max(map(len, prompts)) + 8
    generator = TransformersGenerator(models.student, load_tokenizer(str(STUDENT)))
    short = replace(SAMPLING, max_new_tokens=8)
    samplers = Samplers(generator, generator, None, short, short)
    assert measure_sampler_gap(samplers, models, prompts, seed=0) < 1e-5


def test_a_borrowed_sampler_is_the_trainer_itself(prompts: list[tuple[int, ...]]) -> None:
    models = make_setup("tiny-student")
    generator = TransformersGenerator(models.student, load_tokenizer(str(STUDENT)))
    samplers = Samplers(generator, generator, None, SAMPLING, SAMPLING)
    assert measure_sampler_gap(samplers, models, prompts, seed=0) < 1e-5
    with torch.no_grad():
        models.student.get_output_embeddings().weight.mul_(1.1)
    assert measure_sampler_gap(samplers, models, prompts, seed=0) < 1e-5
