"""A model that answers lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.trd_engine.generation.scripted_server import Reply, chat_answer, serving
from trd_engine.generation.chat import ChatModel, ServedChat, serve
from trd_engine.models.loading import load_model, load_tokenizer
from trd_engine.runtime.errors import EngineError, ModelNotFoundError

TEACHER = Path(__file__).parents[3] / "testbed" / "models" / "tiny-teacher"


def asked(folder: Path, *questions: dict[str, Any]) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = []
    serve(lambda: ChatModel(folder), [json.dumps(question) for question in questions], said.append)
    return said


def text_of(said: list[dict[str, Any]]) -> str:
    return "".join(line.get("piece", "") for line in said)


def test_a_message_and_its_raw_prompt_get_the_same_answer() -> None:
    message = {"messages": [{"role": "user", "content": "2*3"}], "max_new_tokens": 64}
    said = asked(TEACHER, message)
    assert said[0] == {"is_ready": True}
    assert said[-1]["is_truncated"] is False
    raw = asked(TEACHER, {"prompt": "<user>2*3<assistant>", "max_new_tokens": 64})
    assert text_of(raw) == text_of(said) != ""


def test_an_answer_is_cut_at_its_budget_and_drawn_at_its_temperature() -> None:
    question = {"prompt": "<user>77#5#6-7-8*7<assistant>", "max_new_tokens": 5, "temperature": 2.0}
    torch.manual_seed(0)
    said = asked(TEACHER, *[question] * 8)
    ends = [line for line in said if "num_tokens" in line]
    assert {line["num_tokens"] for line in ends} == {5}
    assert all(line["is_truncated"] for line in ends)
    model = ChatModel(TEACHER)
    drawn = set()
    for _ in range(8):
        pieces: list[dict[str, Any]] = []
        model.answer(question, pieces.append)
        drawn.add(text_of(pieces))
    assert len(drawn) > 1


def test_a_question_that_cannot_be_answered_does_not_end_it() -> None:
    said = asked(TEACHER, {"prompt": ""}, {"words": "?"}, {"prompt": "<user>1+1<assistant>"})
    errors = [line["error"] for line in said if "error" in line]
    assert len(errors) == 2
    assert "the prompt is empty" in errors[0]
    assert said[-1]["num_tokens"] > 0


@pytest.mark.parametrize(
    "messages", [[{"role": "user"}], ["hi"], "hi", [{"role": "user", "content": None}], [], 3, None]
)
def test_messages_that_the_template_cannot_take_do_not_end_it(messages: Any) -> None:
    said = asked(TEACHER, {"messages": messages}, {"prompt": "<user>1+1<assistant>"})
    assert said[1]["error"].startswith("the question cannot be answered: ")
    assert said[-1]["num_tokens"] > 0


def test_an_adapter_is_put_on_its_base(tmp_path: Path) -> None:
    model = load_model(str(TEACHER), dtype=torch.float32, device=torch.device("cpu"))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(str(tmp_path))
    load_tokenizer(str(TEACHER)).save_pretrained(str(tmp_path))
    question = {"prompt": "<user>2*3<assistant>", "max_new_tokens": 64}
    assert text_of(asked(tmp_path, question)) == text_of(asked(TEACHER, question)), "a fresh adapter changes nothing"


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
        ChatModel(tmp_path)
    with pytest.raises(EngineError):
        asked(tmp_path / "absent")


def test_a_served_teacher_answers_under_its_rules() -> None:
    with serving(lambda _, number: chat_answer("<b>6</b>", "length") if number == 0 else Reply(status=400)) as server:
        served = {"endpoint": "large", "base_url": server.url, "model": "m", "network": "loopback", "max_tries": 1}
        question = {"messages": [{"role": "user", "content": "2*3"}], "max_new_tokens": 7}
        said: list[dict[str, Any]] = []
        serve(lambda: ServedChat(json.dumps(served)), [json.dumps(question)] * 2, said.append)
        assert server.received[0].body == {
            "model": "m", "messages": question["messages"], "temperature": 0.0, "max_tokens": 7,
        }  # fmt: skip
        assert text_of(said) == "<b>6</b>"
        assert said[2]["is_truncated"] is True
        assert "teacher endpoint large refused" in said[3]["error"]
        with pytest.raises(EngineError, match="outside its network"):
            ServedChat(json.dumps({**served, "network": "public", "base_url": "https://127.0.0.1/v1"}))


def test_an_answer_keeps_within_the_models_context() -> None:
    said = asked(TEACHER, {"prompt": "1+" * 30_000})
    assert "the model's context" in said[-1]["error"]
