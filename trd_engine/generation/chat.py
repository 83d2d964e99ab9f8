"""``python -m trd_engine chat MODEL``: chat with a model, or with a served teacher, over lines of JSON.

Questions, one per line: ``{"messages": […]}``, put into the chat template, or ``{"prompt": "…"}``, used as it is; both
with ``temperature`` (0 is greedy) and ``max_new_tokens``. Answers, one per line: ``{"is_ready": true}`` once; then for
every question ``{"piece": "…"}`` as text arrives, and ``{"num_tokens", "is_truncated"}``, or ``{"error": "…"}``. Output
of libraries goes to standard error. Trains nothing and writes no file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from peft import PeftModel
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer
from transformers.utils import logging

from trd_engine.config import ServedTeacherConfig
from trd_engine.generation.served.client import EndpointClient, MalformedAnswerError, open_endpoint
from trd_engine.models.folders import find_model, local_folder
from trd_engine.models.loading import context_of, end_of_turn_ids, load_model, load_tokenizer
from trd_engine.models.lora import load_adapter
from trd_engine.runtime.distributed import ALONE
from trd_engine.runtime.errors import EngineError, SpecError
from trd_engine.runtime.hardware import choose_compute_dtype, choose_device

Say = Callable[[dict[str, Any]], None]


class _Pieces(TextStreamer):
    """Passes text on as soon as whole words are complete."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, say: Say) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._say = say

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take the next piece of text from transformers."""
        if text:
            self._say({"piece": text})


class ChatModel:
    """A loaded model that answers questions."""

    def __init__(self, model_source: str | Path) -> None:
        """Load the model of a folder or of the hub, ``owner/name@revision``; raise `EngineError` if that fails. An
        adapter needs the base model that it names."""
        device = choose_device("auto")
        found = find_model(Path(local_folder(str(model_source))))
        source = local_folder(found.source)
        model = load_model(source, dtype=choose_compute_dtype("auto", device), device=device)
        self._tokenizer = load_tokenizer(source)
        self._stop_token_ids = end_of_turn_ids(source, self._tokenizer)
        self._model: PreTrainedModel | PeftModel = model
        if found.adapter is not None:
            self._model = load_adapter(model, found.adapter)

    def answer(self, question: dict[str, Any], say: Say) -> None:
        """Answer one question; raise `EngineError` if it has another form."""
        prompt_1T = self._prompt(question)
        context = context_of(self._model)
        num_left = sys.maxsize if context is None else context - prompt_1T.shape[1]
        if num_left < 1:
            raise EngineError(f"it has {prompt_1T.shape[1]} tokens, and the model's context {context}; shorten it")
        max_new_tokens = min(int(question.get("max_new_tokens", 256)), num_left)
        temperature = float(question.get("temperature", 0.0))
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else _GREEDY
        with torch.no_grad():
            generate: Any = self._model.generate  # its type stub fits no model
            output_1T = generate(
                prompt_1T,
                attention_mask=torch.ones_like(prompt_1T),
                max_new_tokens=max_new_tokens,
                eos_token_id=list(self._stop_token_ids),
                pad_token_id=self._stop_token_ids[0],
                streamer=_Pieces(self._tokenizer, say),
                **sampling,
            )
        new_ids = output_1T[0, prompt_1T.shape[1] :].tolist()
        say({"num_tokens": len(new_ids), "is_truncated": not new_ids or new_ids[-1] not in self._stop_token_ids})

    def _prompt(self, question: dict[str, Any]) -> Tensor:
        """Return the prompt's token ids, [1, T]."""
        text = str(question["prompt"]) if "prompt" in question else self._in_template(question["messages"])
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        if not ids:
            raise EngineError("the prompt is empty; send some text")
        return torch.tensor([ids], device=self._model.device)

    def _in_template(self, messages: Any) -> str:
        try:
            return str(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except (TemplateError, TypeError) as error:
            raise EngineError(f"messages do not fit the model's chat template: {error}") from error


_GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
"""Without these, the model's sampling settings cause warnings."""


class ServedChat:
    """A served teacher that answers each question in one piece, under its endpoint's rules for addresses and keys."""

    def __init__(self, document: str) -> None:
        """`document` is the teacher of a spec as JSON. Raises `EngineError`."""
        try:
            served = ServedTeacherConfig.model_validate_json(document)
        except ValidationError as error:
            raise SpecError(f"not a served teacher: {error}") from error
        name, is_vllm = served.endpoint, served.api == "vllm"
        self._model = served.model
        self._client = EndpointClient(open_endpoint(served, name, ALONE, model=served.model, is_vllm=is_vllm))

    def answer(self, question: dict[str, Any], say: Say) -> None:
        """Send the question to the server; raise `TeacherRefusedError` and `TeacherUnreachableError`."""
        body = {
            "model": self._model,
            "messages": question["messages"],
            "temperature": question.get("temperature", 0.0),
            "max_tokens": question.get("max_new_tokens", 256),
        }
        ((text, num_tokens, is_truncated),) = self._client.post_all("chat/completions", [body], _read, lambda _: None)
        say({"piece": text})
        say({"num_tokens": num_tokens, "is_truncated": is_truncated})


def _read(document: Any, _number: int) -> tuple[str, int | None, bool]:
    choice = document["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise MalformedAnswerError("an answer without text")
    return text, (document.get("usage") or {}).get("completion_tokens"), choice.get("finish_reason") == "length"


def serve(load: Callable[[], ChatModel | ServedChat], questions: Iterable[str], say: Say) -> None:
    """Load the model and answer every question. Raises `EngineError` if the model cannot be loaded."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model = load()
    say({"is_ready": True})
    for line in questions:
        try:
            model.answer(json.loads(line), say)
        except (EngineError, ValueError, KeyError, TypeError) as error:
            say({"error": f"the question cannot be answered: {error}"})


def main(model: str) -> int:
    """Answer the questions on standard input by a model or, if `model` is JSON, a served teacher; return the exit
    code."""
    out, sys.stdout = sys.stdout, sys.stderr

    def say(document: dict[str, Any]) -> None:
        out.write(json.dumps(document) + "\n")
        out.flush()

    try:
        serve(lambda: ServedChat(model) if model.startswith("{") else ChatModel(model), sys.stdin, say)
    except EngineError as error:
        say({"error": str(error)})
        return 1
    return 0
