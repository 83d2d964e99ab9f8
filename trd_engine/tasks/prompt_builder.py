"""From problems to prompt token ids: templates, the chat template, and what is cut when it is too long.

A prompt is rendered by the model's own chat template, and the ids that come out are the ones that
are sampled from and the ones that are scored: nothing encodes a prompt a second time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from trd_engine.config import PromptsConfig
from trd_engine.runtime.errors import ModelRefusedError
from trd_engine.tasks.protocol import PromptTemplates, fill
from trd_engine.types import Problem

MODEL_PROMPTS_FILE = "trd_prompts.json"
"""A model folder's own templates, for models that know no others; the fields of `PromptTemplates`."""


def choose_templates(task: PromptTemplates, model_folder: str, chosen: PromptsConfig) -> PromptTemplates:
    """The spec's templates, where it gives none the model folder's, where that has none the task's."""
    own = _read_model_templates(Path(model_folder) / MODEL_PROMPTS_FILE)
    explicit = {name: text for name, text in chosen.model_dump().items() if text is not None}
    return replace(task, **{**own, **explicit})


def _read_model_templates(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    known = {field.name for field in fields(PromptTemplates)}
    if not isinstance(document, Mapping) or not set(document) <= known:
        raise ModelRefusedError(f"{path.name} of the model may hold {sorted(known)}, not {sorted(document)}")
    return {name: str(text) for name, text in document.items()}


@dataclass(frozen=True)
class BuiltPrompt:
    """A prompt, and what had to be cut to make it fit."""

    token_ids: tuple[int, ...]
    num_cut_attempt_tokens: int = 0
    num_cut_solution_tokens: int = 0
    message: str = ""
    """The user's turn alone, for a server that writes its own template around it."""


class PromptBuilder:
    """Writes one model's prompts."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, templates: PromptTemplates, *, thinking: bool | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._templates = templates
        self._arguments: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}

    def solve(self, problem: Problem) -> tuple[int, ...]:
        """The prompt that shows x alone."""
        return self._render(self._templates.solve, problem=problem.problem)

    def solve_message(self, problem: Problem) -> str:
        """The user's turn of `solve`, without the chat template."""
        return fill(self._templates.solve, problem=problem.problem)

    def privileged(self, problem: Problem, *, max_tokens: int) -> BuiltPrompt:
        """The prompt that shows x and the reference solution y*, cut to `max_tokens`."""
        return self._fitted(self._templates.privileged, problem, attempt=None, max_tokens=max_tokens)

    def refine(self, problem: Problem, attempt: str, *, privileged: bool, max_tokens: int) -> BuiltPrompt:
        """The prompt that shows x, y_o and, where `privileged`, y*.

        Over `max_tokens` the attempt's tail is cut first, then the reference's, each with a notice in its
        place; a part that its own notice would make longer stays whole. A prompt that is too long even so comes
        back too long, and the caller leaves it out.
        """
        template = self._templates.privileged_refine if privileged else self._templates.refine
        return self._fitted(template, problem, attempt=attempt, max_tokens=max_tokens)

    def smallest(self, problem: Problem, *, refine: bool, privileged: bool) -> int:
        """Tokens that the teacher's prompt has at the least: with an empty attempt, and the reference whole or cut to
        its notice, whichever is the shorter."""
        notice = self._templates.truncation_notice
        if not refine:
            template = self._templates.privileged if privileged else self._templates.solve
        else:
            template = self._templates.privileged_refine if privileged else self._templates.refine
        solutions = {notice, problem.solution or ""} if privileged else {notice}
        return min(len(self._render(template, problem=problem.problem, attempt="", solution=s)) for s in solutions)

    def decode_prompt(self, token_ids: tuple[int, ...]) -> str:
        """The prompt as the model sees it, special tokens included; for people."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def _fitted(self, template: str, problem: Problem, *, attempt: str | None, max_tokens: int) -> BuiltPrompt:
        texts = _present({"attempt": attempt, "solution": problem.solution or ""})
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
        """The texts with the tail of one part cut as far as needed, their prompt, and how many tokens were cut.

        The notice takes room too, and ids near the cut may merge otherwise, so it repeats until it fits.
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
        content = fill(template, **texts)
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False, **self._arguments
        )
        # The template writes the special tokens itself, as chat templates do.
        return tuple(self._tokenizer.encode(str(text), add_special_tokens=False))


def _present(texts: Mapping[str, str | None]) -> dict[str, str]:
    return {name: text for name, text in texts.items() if text is not None}
