"""The JSONL files of the task."""

from __future__ import annotations

import json
from pathlib import Path

from testbed import task
from testbed.make_data import main

SIZES = {"train": 60, "heldout": 30, "validation": 20}


def _write(out: Path, seed: int) -> dict[str, list[dict[str, str]]]:
    sizes = [part for split, size in SIZES.items() for part in (f"--{split}", str(size))]
    main(["--out", str(out), *sizes, "--seed", str(seed)])
    return {split: [json.loads(line) for line in (out / f"{split}.jsonl").read_text().splitlines()] for split in SIZES}


def test_files_are_deterministic_and_a_seed_changes_them(tmp_path: Path) -> None:
    first, again = _write(tmp_path / "a", 0), _write(tmp_path / "b", 0)
    assert first == again
    assert first["train"] != _write(tmp_path / "c", 1)["train"]


def test_rows_are_complete_distinct_and_in_disjoint_splits(tmp_path: Path) -> None:
    splits = _write(tmp_path, 0)
    seen: set[str] = set()
    for split, rows in splits.items():
        problems = {row["problem"] for row in rows}
        assert len(problems) == len(rows) == SIZES[split]
        assert not problems & seen
        seen |= problems
        for row in rows:
            assert set(row) == {"problem", "answer", "solution"}
            assert task.split_of(row["problem"]) == split
            assert task.boxed_answer(row["solution"]) == row["answer"]
            assert task.style_of(row["solution"]) == task.REFERENCE_STYLE
