"""Datasets of several configurations, as `openai/gsm8k` is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trd_engine.rows import write_jsonl
from trd_engine.config import DataSource
from trd_engine.data.problems import load_problems
from trd_engine.runtime.errors import DataError

_CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train.jsonl}
- config_name: socratic
  data_files:
  - {split: train, path: socratic/train.jsonl}
---
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of two configurations; from where the test runs, `datasets` finds it under a hub's name."""
    folder = tmp_path / "owner" / "sums"
    for number, config in enumerate(("main", "socratic")):
        (folder / config).mkdir(parents=True)
        write_jsonl(folder / config / "train.jsonl", [{"problem": config, "answer": number}])
    (folder / "README.md").write_text(_CARD)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("config", ["main", "socratic"])
def test_a_configuration_is_read_by_its_name(folder: Path, config: str) -> None:
    for source in (DataSource(path=str(folder), config=config), DataSource(hub="owner/sums", config=config)):
        assert [problem.problem for problem in load_problems(source, "math").problems] == [config]


@pytest.mark.parametrize("config", [None, "other"])
def test_without_the_name_of_one_the_field_is_named(folder: Path, config: str | None) -> None:
    for source in (DataSource(path=str(folder), config=config), DataSource(hub="owner/sums", config=config)):
        with pytest.raises(DataError, match=r"(?s)'main', 'socratic'.*; name one of them in the field config$"):
            load_problems(source, "math")


def test_what_has_no_configurations_refuses_one(tmp_path: Path) -> None:
    import datasets

    rows = [{"problem": "1+1", "answer": "2"}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    for path in (write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "saved"):
        with pytest.raises(DataError, match=f"{path}: config 'main' is for a folder of data files"):
            load_problems(DataSource(path=str(path), config="main"), "math")
