"""A dataset folder of the server cannot name files outside the roots that the operator allows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.worker.workbench import Workbench
from trd_engine.config import DataSource
from trd_engine.data.problems import load_problems
from worker.dataset_folders import stage_path
from worker.failures import JobFailedError
from worker.staging import stage

ROW = json.dumps({"problem": "1+1", "answer": "2"}) + "\n"
SECRET = json.dumps({"problem": "another owner's", "answer": "7"}) + "\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret.jsonl").write_text(SECRET)
    folder = tmp_path / "root"
    (folder / "set").mkdir(parents=True)
    return folder


def readme(configs: str) -> str:
    return f"---\nlicense: mit\nconfigs:\n{configs}\n---\n# text\n"


def load(root: Path, tmp_path: Path, config: str | None = None) -> list[str]:
    path = stage_path(str(root / "set"), [root], tmp_path / "staged")
    return [problem.problem for problem in load_problems(DataSource(path=path, config=config), "exact").problems]


def test_the_data_files_of_a_folder_are_read(root: Path, tmp_path: Path) -> None:
    (root / "set" / "data").mkdir()
    (root / "set" / "data" / "train-00000-of-00001.jsonl").write_text(ROW)
    (root / "set" / "loader.py").write_text("raise SystemExit")
    (root / "set" / "README.md").write_text("no header")
    assert load(root, tmp_path) == ["1+1"]
    staged = {path.name for path in (tmp_path / "staged").rglob("*")}
    assert staged == {"data", "train-00000-of-00001.jsonl"}


def test_a_configuration_of_the_readme_is_kept(root: Path, tmp_path: Path) -> None:
    (root / "set" / "a.jsonl").write_text(ROW)
    (root / "set" / "b.jsonl").write_text(SECRET)
    configs = (
        "- config_name: one\n  data_files: a.jsonl\n- config_name: two\n  data_files:\n  - split: train\n    path: [b*]"
    )
    (root / "set" / "README.md").write_text(readme(configs))
    assert load(root, tmp_path, "one") == ["1+1"]
    (tmp_path / "staged").rename(tmp_path / "before")
    assert load(root, tmp_path, "two") == ["another owner's"]


def test_a_folder_of_save_to_disk_is_read(root: Path, tmp_path: Path) -> None:
    import datasets  # type: ignore[import-untyped]

    rows = datasets.Dataset.from_list([json.loads(ROW)])
    datasets.DatasetDict({"train": rows}).save_to_disk(str(root / "set"))
    assert load(root, tmp_path) == ["1+1"]


OUTSIDE = [
    "../secret.jsonl",
    "../../secret.jsonl",
    "data/../../secret.jsonl",
    "{tmp}/secret.jsonl",
    "file://{tmp}/secret.jsonl",
    "file:///{tmp}/secret.jsonl",
    "FILE://{tmp}/secret.jsonl",
    "http://127.0.0.1:9/x.jsonl",
    "https://127.0.0.1:9/x.jsonl",
    "hf://datasets/a/b/x.jsonl",
    "zip://x::http://127.0.0.1:9/x.zip",
    "s3://bucket/x.jsonl",
    "~/secret.jsonl",
    "..\\\\secret.jsonl",
]
WAYS: dict[str, Callable[[str], str]] = {
    "text": lambda pattern: readme(f'- config_name: default\n  data_files: "{pattern}"'),
    "list": lambda pattern: readme(f'- config_name: default\n  data_files: ["a.jsonl", "{pattern}"]'),
    "split": lambda pattern: readme(
        f'- config_name: default\n  data_files:\n  - split: train\n    path: ["a.jsonl", "{pattern}"]'
    ),
    "folder": lambda pattern: readme(f'- config_name: default\n  data_dir: "{pattern}"'),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pattern", OUTSIDE)
def test_a_readme_that_names_files_elsewhere_is_refused(way: str, pattern: str, root: Path, tmp_path: Path) -> None:
    (root / "set" / "a.jsonl").write_text(ROW)
    (root / "set" / "README.md").write_text(WAYS[way](pattern.replace("{tmp}", str(tmp_path))))
    with pytest.raises(JobFailedError, match="only files of the folder are read"):
        load(root, tmp_path)


@pytest.mark.parametrize(
    "content",
    ["---\nconfigs: {a: 1}\n---\n", "---\nconfigs: [1]\n---\n", "---\n{\n---\n", "---\n- &a [*a]\n---\n", "\xff" * 9,
     "---\nconfigs:\n- data_files: {a: b}\n---\n", "---\nconfigs:\n- data_files: [[a]]\n---\n",
     "---\n!!python/name:os.system\n---\n"],
)  # fmt: skip
def test_an_odd_readme_ends_in_an_error_of_the_job_or_is_left_out(content: str, root: Path, tmp_path: Path) -> None:
    (root / "set" / "a.jsonl").write_text(ROW)
    (root / "set" / "README.md").write_text(content)
    with suppress(JobFailedError):
        assert load(root, tmp_path) == ["1+1"]


@pytest.mark.parametrize("place", ["a file", "a folder", "the readme", "the path", "hidden"])
def test_links_out_of_the_roots_are_refused_or_not_followed(place: str, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "train.jsonl").write_text(SECRET)
    (root / "set" / "a.jsonl").write_text(ROW)
    if place == "a file":
        (root / "set" / "b.jsonl").symlink_to(outside / "train.jsonl")
    elif place == "a folder":
        (root / "set" / "data").symlink_to(outside)
        assert load(root, tmp_path) == ["1+1"]
        return
    elif place == "hidden":
        (root / "set" / ".huggingface.yaml").write_text(
            "configs:\n- config_name: default\n  data_files: ../secret.jsonl"
        )
        assert load(root, tmp_path) == ["1+1"]
        return
    elif place == "the readme":
        (root / "set" / "README.md").symlink_to(outside / "train.jsonl")
    else:
        (root / "set" / "a.jsonl").unlink()
        (root / "set").rmdir()
        (root / "set").symlink_to(outside)
    with pytest.raises(JobFailedError, match="is not a file within the folders"):
        load(root, tmp_path)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "relative", "{root}/../secret.jsonl", "{root}/none", "/dev/zero", "{root}/pipe"]
)
def test_a_path_outside_is_refused_by_the_worker_too(path: str, root: Path, tmp_path: Path) -> None:
    os.mkfifo(root / "pipe")
    with pytest.raises(JobFailedError):
        stage_path(path.replace("{root}", str(root)), [root], tmp_path / "staged")


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "..", "a/b.arrow", "http://x/a.arrow", 1])
def test_a_saved_folder_that_names_files_elsewhere_is_refused(name: object, root: Path, tmp_path: Path) -> None:
    (root / "set" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(JobFailedError, match="which is not a file beside it"):
        load(root, tmp_path)
    (root / "set" / "state.json").unlink()
    (tmp_path / "staged").rename(tmp_path / "before")
    (root / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", name]}))
    with pytest.raises(JobFailedError, match="which is not a file beside it"):
        load(root, tmp_path)


def test_a_job_reads_the_staged_folder(tmp_path: Path, sqlite_url: str, root: Path) -> None:
    (root / "set" / "a.jsonl").write_text(ROW)
    bench = Workbench(sqlite_url, tmp_path / "data", dataset_roots=(root,))
    bench.add_job(spec={"dataset": {"path": str(root / "set")}})
    lease = bench.claim()
    assert lease is not None
    stage(bench.attempt(lease))
    folder = bench.attempt_folder(lease.job_id)
    document = json.loads((folder / "spec.json").read_text())
    assert document["dataset"]["path"] == str(folder / "dataset-0")
    assert (folder / "dataset-0" / "a.jsonl").read_text() == ROW
