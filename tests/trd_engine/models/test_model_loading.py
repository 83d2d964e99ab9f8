"""Models that may not be used, and pairs that do not belong together, are refused with what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import AutoConfig

from tests.trd_engine.tiny_runs import MODELS, spec, write_data
from trd_engine.cli import main
from trd_engine.config import parse_config
from trd_engine.models.folders import find_model
from trd_engine.models.loading import end_of_turn_ids, load_model, load_tokenizer, special_token_ids
from trd_engine.runtime.errors import (
    ContextTooLongError,
    DeviceUnavailableError,
    EngineError,
    ModelNotFoundError,
    ModelRefusedError,
    SpecError,
    TokenizerMismatchError,
)
from trd_engine.runtime.hardware import choose_device
from trd_engine.training.loop import distil


@pytest.fixture
def altered(tmp_path: Path) -> Path:
    """A copy of the teacher, to be broken."""
    return Path(shutil.copytree(MODELS / "tiny-teacher", tmp_path / "altered"))


def edit(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**document, **changes}), encoding="utf-8")


def refused(tmp_path: Path, kind: type[EngineError], match: str, **changes: Any) -> None:
    """Assert that running the altered spec raises `kind` before anything is sampled."""
    data = write_data(tmp_path / "data", train=8, heldout=4)
    with pytest.raises(kind, match=match):
        distil(parse_config(spec(data, **changes)), tmp_path / "out")
    assert '"rollout"' not in (tmp_path / "out" / "events.jsonl").read_text(encoding="utf-8")


def test_a_teacher_with_another_tokenizer_is_refused_and_the_first_difference_named(
    altered: Path, tmp_path: Path
) -> None:
    path = altered / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = document["model"]["vocab"]
    vocabulary["7"], vocabulary["8"] = vocabulary["8"], vocabulary["7"]
    path.write_text(json.dumps(document), encoding="utf-8")
    refused(tmp_path, TokenizerMismatchError, r"token '[78]' is \d+ in the student's", teacher=str(altered))


def test_a_model_that_does_not_exist_is_named(tmp_path: Path) -> None:
    refused(tmp_path, ModelNotFoundError, "no such folder", student=str(tmp_path / "nowhere"))


def test_a_model_with_code_of_its_own_is_refused(altered: Path, tmp_path: Path) -> None:
    edit(altered / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    refused(tmp_path, ModelRefusedError, "auto_map", teacher=str(altered))


@pytest.mark.parametrize("method", ["awq", "fp8"])  # transformers lacks a package for one, and unpacks the other
def test_a_model_with_quantised_weights_is_refused(method: str, altered: Path, tmp_path: Path) -> None:
    edit(altered / "config.json", quantization_config={"quant_method": method})
    refused(tmp_path, ModelRefusedError, "are quantised .* for a teacher a server", teacher=str(altered))


def test_a_model_without_safetensors_is_refused(altered: Path, tmp_path: Path) -> None:
    (altered / "model.safetensors").rename(altered / "pytorch_model.bin")
    refused(tmp_path, ModelRefusedError, "cannot be loaded", teacher=str(altered))


def test_budgets_over_the_context_are_refused(tmp_path: Path) -> None:
    budget = {"max_prompt_tokens": 100_000, "max_new_tokens": 96}
    refused(tmp_path, ContextTooLongError, "refine.max_prompt_tokens", refine=budget)


def test_a_teacher_that_cannot_read_what_it_is_to_score_is_refused(altered: Path, tmp_path: Path) -> None:
    """Beyond a model's context its figures mean nothing, and no library says so."""
    edit(altered / "config.json", max_position_embeddings=70)
    match = r"sampling.max_prompt_tokens \+ sampling.max_new_tokens = 64 \+ 12 tokens, .* teacher .* is 70"
    refused(tmp_path, ContextTooLongError, match, teacher=str(altered), mode="opd", loss={})


def test_a_reference_too_long_to_be_read_with_the_text_is_refused(tmp_path: Path) -> None:
    student = Path(shutil.copytree(MODELS / "tiny-student", tmp_path / "student"))
    edit(student / "config.json", max_position_embeddings=138)
    rows = tmp_path / "rows.jsonl"
    row = {"problem": "1+2", "answer": "3", "solution": "1+" * 60 + "3"}
    rows.write_text(json.dumps(row) + "\n", encoding="utf-8")
    changes = {"student": str(student), "teacher": None, "mode": "opsd", "loss": {}, "evaluation": {"holdout": 0.0}}
    refused(tmp_path, ContextTooLongError, "longest prompt with its reference", dataset={"path": str(rows)}, **changes)


def test_every_special_token_is_known(altered: Path) -> None:
    """A tokenizer lists those of its own roles; a chat has more."""
    edit(altered / "generation_config.json", eos_token_id=[7, 9])
    tokenizer = load_tokenizer(str(altered))
    tokenizer.add_tokens([AddedToken("<|eot|>", special=True)])
    added = tokenizer.convert_tokens_to_ids("<|eot|>")
    assert {7, 9, added, tokenizer.eos_token_id} <= set(special_token_ids(str(altered), tokenizer))
    assert special_token_ids(str(altered), tokenizer) != tuple(sorted(tokenizer.all_special_ids))


def test_lora_targets_that_the_student_has_not_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, SpecError, "wqkv.*it has.*q_proj", lora={"target_modules": ["wqkv"]})


def test_an_adapter_on_the_head_is_refused(tmp_path: Path) -> None:
    """The loss takes the head's weight past the layer that would add an adapter to it."""
    refused(tmp_path, SpecError, "lm_head.*it has.*q_proj", lora={"target_modules": ["q_proj", "lm_head"]})


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeviceUnavailableError, match="cuda"):
        choose_device("cuda")


def test_every_end_of_turn_token_counts() -> None:
    folder = str(MODELS / "tiny-student")
    assert end_of_turn_ids(folder, load_tokenizer(folder)) == (load_tokenizer(folder).eos_token_id,)


def test_an_adapter_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[]"):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(ModelRefusedError, match=r"adapter_config\.json describes no adapter"):
            find_model(tmp_path)


def _lacks_a_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if ".layers.1." not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def _has_another_shape(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=2 * AutoConfig.from_pretrained(folder).intermediate_size)


def _is_cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (_lacks_a_layer, r"lack 11 of the weights.* first model\.layers\.1\.input_layernorm\.weight; copy"),
        (_has_another_shape, r"in another shape, first model\.layers\.0\.mlp\.down_proj\.weight"),
        (_is_cut_off, "cannot be loaded: Error while deserializing header"),
    ],
)
def test_a_model_whose_files_lack_weights_is_refused(altered: Path, harm: Callable[[Path], None], match: str) -> None:
    harm(altered)
    with pytest.raises(ModelRefusedError, match=match):
        load_model(str(altered), dtype=torch.float32, device=torch.device("cpu"))


def test_the_command_line_names_field_value_and_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "spec.json"
    broken = {"mode": "opd", "student": "s", "dataset": {"path": "x"}, "optim": {"batch_size": 0}}
    path.write_text(json.dumps(broken), encoding="utf-8")
    assert main(["run", str(path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "invalid_spec" in error
    assert "optim.batch_size" in error
    path.write_text("{", encoding="utf-8")
    assert main(["run", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "not a readable JSON file" in capsys.readouterr().err
    path.write_text(json.dumps({**broken, "optim": {}, "teacher": "/absent", "student": "/absent"}), encoding="utf-8")
    assert main(["run", str(path), "--out", str(path)]) == 1
    assert capsys.readouterr().err == f"{path}: File exists\n"


def test_the_command_line_runs_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data", train=16, heldout=4)
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec(data, optim={"batch_size": 8, "learning_rate": 1e-3})), encoding="utf-8")
    resume = ["run", str(path), "--out", str(tmp_path / "out"), "--resume"]
    assert main(resume) == 0
    out, err = capsys.readouterr()
    assert "step-00000002" in out
    assert "out has no checkpoint: the run starts from the beginning" in err
    assert main(resume) == 0
    assert "from the beginning" not in capsys.readouterr().err


@pytest.mark.parametrize("settings", [{"temperature": 0.6}, {"top_p": 0.9, "do_sample": False}])
@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
def test_generation_settings_that_cannot_be_saved_are_repaired_at_load(
    altered: Path, tmp_path: Path, settings: dict[str, Any], lora: dict[str, Any] | None
) -> None:
    edit(altered / "generation_config.json", **settings)
    model = load_model(str(altered), dtype=torch.float32, device=torch.device("cpu"))
    if lora is not None:
        model = get_peft_model(model, LoraConfig(r=lora["rank"], target_modules="all-linear")).merge_and_unload()
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text(encoding="utf-8"))
    assert saved["do_sample"] is True
    assert settings.items() - {("do_sample", False)} <= saved.items()
