"""The committed models: ordinary folders, one tokenizer, and abilities as their cards say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import testbed
from testbed.measure import complete, correct, draw_problems, load_model, refining_scores, solving_scores
from testbed.recipes import RECIPES, record
from testbed.tokenizer import END_ID, PAD_ID, PROMPTS
from trd_data.templates import MODEL_PROMPTS_FILE

MODELS = Path(testbed.__file__).parent / "models"
NAMES = list(RECIPES)
MAX_BYTES = 9_500_000


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_loads_with_transformers(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODELS / name)
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
    assert model.config.model_type == "qwen3"
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16 if RECIPES[name].half_precision else torch.float32}
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (END_ID, PAD_ID)
    generation = GenerationConfig.from_pretrained(MODELS / name)
    assert (generation.eos_token_id, generation.pad_token_id) == (END_ID, PAD_ID)
    message = {"role": "user", "content": PROMPTS["solve"].replace("{problem}", "12+3-4*5+6*7")}
    prompt = tokenizer.apply_chat_template([message], add_generation_prompt=True, return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=320, do_sample=False)[0]
    text = tokenizer.decode(output[prompt["input_ids"].shape[1] :])
    assert text.endswith("}<end>")
    assert " " not in text


@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja", MODEL_PROMPTS_FILE])
def test_all_models_share_tokenizer_and_templates(file: str) -> None:
    contents = {(MODELS / name / file).read_bytes() for name in NAMES}
    assert len(contents) == 1


def test_the_prompt_templates_are_those_of_training() -> None:
    assert json.loads((MODELS / NAMES[0] / MODEL_PROMPTS_FILE).read_text()) == PROMPTS


@pytest.mark.parametrize("name", NAMES)
def test_the_facts_of_a_folder_are_those_of_its_recipe(name: str) -> None:
    facts = json.loads((MODELS / name / "training.json").read_text())
    recipe = json.loads(json.dumps(record(RECIPES[name])))
    # The summary is prose for the card: it may be worded anew without training again.
    assert facts["recipe"] | {"summary": ""} == recipe | {"summary": ""}
    assert (MODELS / name / "README.md").read_text().startswith(f"# {name}\n")
    log = (MODELS / "logs" / f"{name}.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == RECIPES[name].steps - 1


def test_models_and_logs_are_small() -> None:
    sizes = {path: path.stat().st_size for path in MODELS.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < MAX_BYTES
    assert all(size < 100_000 for path, size in sizes.items() if path.suffix == ".jsonl")


def test_the_teacher_solves_and_refines_what_the_student_cannot() -> None:
    problems = draw_problems(64, "heldout", seed=11)
    teacher, student = load_model(MODELS / "tiny-teacher"), load_model(MODELS / "tiny-student")
    solved, attempts = solving_scores(student, problems, 1, seed=0)
    by_teacher = complete(teacher, problems)
    assert sum(map(correct, problems, by_teacher)) / 64 > solved["greedy"] + 0.3
    refined = refining_scores(teacher, problems, attempts, privileged=False, seed=0)
    assert refined["refined_greedy"] > refined["attempts"] + 0.3
    assert refined["style_kept"] > 0.9
    followed = refining_scores(student, problems, attempts, privileged=True, seed=0)
    assert followed["refined_greedy"] > 0.8


def test_a_native_teacher_solves_in_a_style_of_its_own_and_refines_in_the_attempts() -> None:
    problems = draw_problems(64, "heldout", seed=12)
    student = load_model(MODELS / "tiny-student")
    attempts = complete(student, problems, seed=0)
    for name, low, high in (("tiny-teacher-native", 0.95, 1.0), ("tiny-teacher-half-native", 0.25, 0.75)):
        teacher = load_model(MODELS / name)
        solved, _ = solving_scores(teacher, problems, 1, seed=0)
        assert low <= solved["values_only"] <= high
        refined = refining_scores(teacher, problems, attempts, privileged=False, seed=0)
        assert min(solved["greedy"], refined["refined_greedy"]) > 0.75
        assert refined["style_kept"] > 0.95


def test_the_looping_student_is_long_and_its_teacher_refines_it_without_a_loop() -> None:
    problems = draw_problems(64, "heldout", seed=13)
    student, teacher = load_model(MODELS / "tiny-student-loops"), load_model(MODELS / "tiny-teacher-loops")
    solved, attempts = solving_scores(student, problems, 1, seed=0)
    assert 0.1 < solved["avg@1"] < 0.6
    assert sum(attempt.count("wait") > 1 for attempt in attempts) > 16
    refined = refining_scores(teacher, problems, attempts, privileged=False, seed=0)
    assert refined["refined_greedy"] > 0.75
    assert refined["attempt_tokens"] > 1.5 * refined["refined_tokens"]
