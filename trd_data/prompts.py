"""Prompts as token ids: templates, the chat template, and what is cut from a prompt that is too long.

A prompt is rendered by the model's own chat template. The resulting ids are sampled from and scored: nothing encodes
a prompt a second time. The service's preview and the engine call the same code; they differ only in the tokenizer
that they pass (`chat_template.FolderTokenizer`, or the one of transformers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trd_data.chat_template import ChatTemplate
from trd_data.problems import Problem
from trd_data.templates import PromptTemplates, fill


class PromptTokenizer(Protocol):
    """What a prompt needs of a tokenizer. The tokenizers of transformers have these members."""

    chat_template: Any
    """Jinja source of the model's chat template."""

    @property
    def special_tokens_map(self) -> Mapping[str, Any]:
        """Special tokens by name, such as bos_token, for the chat template."""
        ...

    def encode(self, text: str, /, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of `text`."""
        ...

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool) -> Any:
        """Return the text of `token_ids`."""
        ...


@dataclass(frozen=True)
class BuiltPrompt:
    """A prompt, and what was cut from it to make it fit."""

    token_ids: tuple[int, ...]
    num_cut_attempt_tokens: int = 0
    num_cut_solution_tokens: int = 0
    message: str = ""
    """The user's turn alone, for a server that applies its own chat template."""


class PromptBuilder:
    """Writes the prompts of one model."""

    def __init__(self, tokenizer: PromptTokenizer, templates: PromptTemplates, *, thinking: bool | None = None) -> None:
        """`thinking`: the chat template's argument enable_thinking; None leaves it out.

        Raises `PromptError` if the tokenizer has no chat template that can be read.
        """
        self._tokenizer = tokenizer
        self._templates = templates
        self._arguments: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        self._chat = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens_map)

    def solve(self, problem: Problem) -> tuple[int, ...]:
        """Return the prompt that shows x alone."""
        return self._render(self._templates.solve, problem=problem.problem)

    def solve_message(self, problem: Problem) -> str:
        """Return the user's turn of `solve`, without the chat template."""
        return fill(self._templates.solve, problem=problem.problem)

    def privileged(self, problem: Problem, *, max_tokens: int) -> BuiltPrompt:
        """Return the prompt that shows x and the reference solution y*, cut to `max_tokens`."""
        return self._fitted(self._templates.privileged, problem, attempt=None, max_tokens=max_tokens)

    def refine(self, problem: Problem, attempt: str, *, privileged: bool, max_tokens: int) -> BuiltPrompt:
        """Return the prompt that shows x, y_o and, if `privileged`, y*.

        Over `max_tokens` the attempt's tail is cut first, then the reference's, and a notice replaces each. A part
        that its own notice would make longer is kept whole. A prompt that is still too long is returned too long, and
        the caller leaves it out.
        """
        template = self._templates.privileged_refine if privileged else self._templates.refine
        return self._fitted(template, problem, attempt=attempt, max_tokens=max_tokens)

    def smallest(self, problem: Problem, *, refine: bool, privileged: bool) -> int:
        """Return the least number of tokens that the teacher's prompt can have: with an empty attempt, and with the
        reference either whole or cut to its notice, whichever is shorter."""
        notice = self._templates.truncation_notice
        if not refine:
            template = self._templates.privileged if privileged else self._templates.solve
        else:
            template = self._templates.privileged_refine if privileged else self._templates.refine
        solutions = {notice, problem.solution or ""} if privileged else {notice}
        return min(len(self._render(template, problem=problem.problem, attempt="", solution=s)) for s in solutions)

    def decode_prompt(self, token_ids: Sequence[int]) -> str:
        """Return the prompt as the model sees it, special tokens included, for people to read."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def chat_text(self, message: str) -> str:
        """Return the chat template's text around one turn of the user."""
        return self._chat.render(message, **self._arguments)

    def _fitted(self, template: str, problem: Problem, *, attempt: str | None, max_tokens: int) -> BuiltPrompt:
        texts = {"solution": problem.solution or ""}
        if attempt is not None:
            texts = {"attempt": attempt, **texts}
        cut = {"attempt": 0, "solution": 0}
        token_ids = self._render(template, problem=problem.problem, **texts)
        for part in texts:
            if len(token_ids) > max_tokens:
                shorter, shorter_ids, num_cut = self._shortened(template, problem, texts, part, max_tokens)
                if len(shorter_ids) < len(token_ids):
                    texts, token_ids, cut[part] = shorter, shorter_ids, num_cut
        message = fill(template, problem=problem.problem, **texts)
        return BuiltPrompt(token_ids, cut["attempt"], cut["solution"], message)

    def _shortened(
        self, template: str, problem: Problem, texts: Mapping[str, str], part: str, max_tokens: int
    ) -> tuple[dict[str, str], tuple[int, ...], int]:
        """Return the texts with the tail of one part cut as far as needed, their prompt, and the number of cut tokens.

        The notice takes room too, and ids near the cut may merge differently, so it repeats until the prompt fits.
        """
        part_ids = self._tokenizer.encode(texts[part], add_special_tokens=False)
        shorter, keep = dict(texts), len(part_ids)
        token_ids = self._render(template, problem=problem.problem, **shorter)
        while len(token_ids) > max_tokens and keep > 0:
            keep = max(0, keep - (len(token_ids) - max_tokens))
            head = str(self._tokenizer.decode(part_ids[:keep], skip_special_tokens=False))
            shorter[part] = head + self._templates.truncation_notice
            token_ids = self._render(template, problem=problem.problem, **shorter)
        return shorter, token_ids, len(part_ids) - keep

    def _render(self, template: str, **texts: str) -> tuple[int, ...]:
        text = self.chat_text(fill(template, **texts))
        # No special tokens are added: the chat template writes them itself.
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))
