"""Request body of a chat."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from contract.views.chats import ChatModel
from service.query import RequestModel

MAX_CHARACTERS = 64_000
"""Most characters of all messages together."""


class Message(RequestModel):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    """Who wrote it."""
    content: Annotated[str, Field(max_length=MAX_CHARACTERS)]
    """Its text."""


class Question(RequestModel):
    """What to answer, and by which model."""

    model: ChatModel = ChatModel.CHECKPOINT
    """checkpoint; base: the student before training; teacher: of jobs that name one."""
    messages: Annotated[list[Message], Field(min_length=1, max_length=100)]
    """The conversation in the form of the model's chat template; the last turn is the user's."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """0 is greedy."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 512
    """Longest answer."""

    @model_validator(mode="after")
    def _ends_with_the_user(self) -> Self:
        if self.messages[-1].role != "user":
            raise PydanticCustomError("last_turn", "messages: the last turn must have the role user")
        if sum(len(message.content) for message in self.messages) > MAX_CHARACTERS:
            raise PydanticCustomError("too_long", f"messages: all together may have {MAX_CHARACTERS} characters")
        return self
