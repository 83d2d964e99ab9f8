"""A served teacher that answers the questions of `trd_engine.generation.chat`, each in one piece."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from trd_engine.config import ServedTeacherConfig
from trd_engine.generation.chat import Say
from trd_engine.generation.served.client import EndpointClient, MalformedAnswerError
from trd_engine.runtime.distributed import ALONE
from trd_engine.runtime.errors import SpecError
from trd_engine.teachers.served import endpoint_of


class ServedChat:
    """Answers through an endpoint, under its rules for addresses and keys."""

    def __init__(self, document: str) -> None:
        """`document` is the teacher of a spec as JSON. Raises `EngineError`."""
        try:
            served = ServedTeacherConfig.model_validate_json(document)
        except ValidationError as error:
            raise SpecError(f"not a served teacher: {error}") from error
        self._endpoint = endpoint_of(served, ALONE)
        self._client = EndpointClient(self._endpoint)

    def answer(self, question: dict[str, Any], say: Say) -> None:
        """Send the question to the server; raise `TeacherRefusedError` and `TeacherUnreachableError`."""
        body = {
            "model": self._endpoint.model,
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
