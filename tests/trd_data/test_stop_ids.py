"""The tokens that end a completion, wherever a model's files name them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from trd_data.errors import PromptError
from trd_data.stop_ids import find_stop_ids
from trd_engine.models.loading import end_of_turn_ids, load_tokenizer

TINY = Path(__file__).parents[2] / "testbed" / "models" / "tiny-student"
VOCABULARY = {"<pad>": 0, "<end>": 1, "<user>": 2, "<assistant>": 3, "<|im_end|>": 4, "<|im_end|>\n": 5, "a": 6}
SPECIAL = {"<pad>", "<end>", "<user>", "<assistant>", "<|im_end|>"}
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
LOOPS = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"

Case = tuple[Any, Any, str | None, str, tuple[int, ...], int]
CASES: dict[str, Case] = {
    # generation_config.json, config.json, the tokenizer's eos, the chat template: the ids, and those of the notice
    "all agree": (1, 1, "<end>", PLAIN, (1,), 0),
    "config.json alone has a second": (None, [1, 0], "<end>", PLAIN, (1, 0), 1),
    "config.json has a second beside the settings": (1, [1, 0], "<end>", PLAIN, (1, 0), 1),
    "the settings have more": ([1, 4], 1, "<end>", PLAIN, (1, 4), 0),
    "the settings have all": ([1, 4], 1, "<|im_end|>", CHATML, (1, 4), 0),
    "the chat template's is missing": (1, 1, "<end>", CHATML, (1, 4), 1),
    "the tokenizer's is missing": (1, 1, "<|im_end|>", CHATML, (1, 4), 1),
    "the tokenizer alone": (None, None, "<end>", PLAIN, (1,), 0),
    "config.json alone": (None, 1, None, PLAIN, (1,), 1),
    "the chat template alone": (None, None, None, CHATML, (4,), 1),
    "nothing": (None, None, None, PLAIN, (), 0),
    "within text_config": (None, {"text_config": {"eos_token_id": [1, 0]}}, "<end>", PLAIN, (1, 0), 1),
    "wrong types": (True, ["1", None, 1.0, -1], "<end>", PLAIN, (1,), 0),
    "an eos that is no token": (1, 1, "</s>", PLAIN, (1,), 0),
    "a template that loops": (1, 1, "<end>", LOOPS, (1,), 0),
    "a template that cannot be read": (1, 1, "<end>", "{% if %}", (1,), 0),
    "a template without answers": (1, 1, "<end>", "{{ messages[0].content }}", (1,), 0),
    "a template that writes no special token": (1, 1, "<end>", "{{ messages[-1].content }}a", (1,), 0),
}


@pytest.mark.parametrize(("settings", "config", "eos", "template", "ids", "num_missing"), CASES.values(), ids=CASES)
def test_every_place_counts_and_a_difference_is_noticed(
    settings: Any, config: Any, eos: str | None, template: str, ids: tuple[int, ...], num_missing: int, tmp_path: Path
) -> None:
    if settings is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": settings}))
    document = config if isinstance(config, dict) else {"eos_token_id": config}
    (tmp_path / "config.json").write_text(json.dumps(document))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos, "chat_template": template}))
    found = find_stop_ids(tmp_path, VOCABULARY, SPECIAL)
    assert found.ids == ids
    notice = found.notice("student")
    assert (notice.count if notice else 0) == num_missing
    if notice:
        assert notice.code == "stop_ids"
        assert "generation_config.json" in notice.remedy


def test_the_notice_names_the_places_and_the_tokens(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": [1, 0]}')
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "chat_template": PLAIN}))
    notice = find_stop_ids(tmp_path, VOCABULARY, SPECIAL).notice("teacher")
    assert notice is not None
    assert notice.message == (
        "the files of the teacher's folder name different tokens that end a completion (the tokenizer: 1 '<end>'; "
        "config.json: 1 '<end>', 0 '<pad>'); samples end at any of them"
    )
    assert notice.example == "0 '<pad>', of config.json"


def test_a_broken_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(PromptError, match="not a JSON object"):
        find_stop_ids(tmp_path, VOCABULARY, SPECIAL)


def test_the_engine_stops_at_all_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    assert end_of_turn_ids(str(folder), load_tokenizer(str(folder))) == (1,)
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": [1, 0]}))
    assert end_of_turn_ids(str(folder), load_tokenizer(str(folder))) == (1, 0)
