"""Parts of an answer in a chat with a checkpoint, as a stream of server-sent events sends them."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from contract.views import View


class ChatModel(StrEnum):
    """Which model of a job answers."""

    CHECKPOINT = "checkpoint"
    BASE = "base"  # the student before training
    TEACHER = "teacher"


class AnswerWaits(View):
    """No text yet, and why."""

    object: Literal["answer.waiting"] = "answer.waiting"
    position: int
    """Place among the answers that wait for the queue's workers, from 1; 0: a worker has it."""
    message: str


class AnswerPiece(View):
    """More text."""

    object: Literal["answer.piece"] = "answer.piece"
    text: str


class AnswerEnd(View):
    """The last part."""

    object: Literal["answer.end"] = "answer.end"
    num_tokens: int | None = None
    """Tokens of the answer; null after an error."""
    is_truncated: bool = False
    """Whether the limit of tokens or of time ended it."""
    error: str | None = None
    """Why there is no answer, or no more of it."""
