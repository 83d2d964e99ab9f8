"""A model's prompts, token for token, without torch or transformers: its tokenizer and its chat template alone.

The engine's `trd_engine.tasks.prompt_builder` is the truth; a test holds the two together. Reads
tokenizer.json, the chat template and the folder's own prompt templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from contract.model_catalog import ModelRefusedError

MODEL_PROMPTS_FILE = "trd_prompts.json"
PromptKind = Literal["solve", "privileged", "refine", "privileged_refine"]
PROMPT_KINDS: tuple[PromptKind, ...] = get_args(PromptKind)
_PLACEHOLDER = re.compile(r"\{(problem|solution|attempt)\}")
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt, and what was cut of it."""

    text: str
    token_ids: list[int]
    num_cut_solution_tokens: int = 0


class PromptRenderer:
    """Writes the prompts of the model in a folder."""

    def __init__(self, folder: Path) -> None:
        """Raises `ModelRefusedError` where the folder has no chat template or no readable tokenizer."""
        self._folder = folder
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._special, source = _template_parts(folder)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._chat_template = environment.from_string(source)
        except TemplateError as error:
            raise ModelRefusedError(f"the chat template cannot be read: {error}") from error

    def templates(self, task: str) -> dict[str, str]:
        """The model folder's own templates where it has them, else the task's."""
        templates = dict(_task_templates()[task])
        own = self._folder / MODEL_PROMPTS_FILE
        if own.is_file():
            templates.update(json.loads(own.read_text(encoding="utf-8")))
        return templates

    def fitted(self, templates: Mapping[str, str], kind: str, texts: dict[str, str], max_tokens: int) -> FittedPrompt:
        """The prompt of that kind. Over `max_tokens` the reference solution's tail is cut, with a notice in its
        place; a prompt that is too long without it stays so."""
        template, notice = templates[kind], templates["truncation_notice"]
        token_ids, num_cut = self._encoded(template, texts), 0
        solution = texts.get("solution")
        if solution and "{solution}" in template and len(token_ids) > max_tokens:
            part_ids = self._tokenizer.encode(solution, add_special_tokens=False).ids
            keep = len(part_ids)
            while len(token_ids) > max_tokens and keep > 0:
                keep = max(0, keep - max(1, len(token_ids) - max_tokens))
                head = self._tokenizer.decode(part_ids[:keep], skip_special_tokens=False)
                texts = {**texts, "solution": head + notice}
                token_ids = self._encoded(template, texts)
            num_cut = len(part_ids) - keep
        return FittedPrompt(self._rendered(template, texts), token_ids, num_cut)

    def num_tokens(self, templates: Mapping[str, str], kind: str, texts: dict[str, str]) -> int:
        """Of the prompt as it is."""
        return len(self._encoded(templates[kind], texts))

    def _encoded(self, template: str, texts: Mapping[str, str]) -> list[int]:
        ids: list[int] = self._tokenizer.encode(self._rendered(template, texts), add_special_tokens=False).ids
        return ids

    def _rendered(self, template: str, texts: Mapping[str, str]) -> str:
        content = _PLACEHOLDER.sub(lambda match: texts.get(match.group(1), ""), template)
        try:
            return self._chat_template.render(
                messages=[{"role": "user", "content": content}],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special,
            )
        except TemplateError as error:
            raise ModelRefusedError(f"the chat template fails: {error}") from error


@lru_cache(maxsize=8)
def renderer_of(folder: Path, _changed_at: tuple[int | None, ...]) -> PromptRenderer:
    """The renderer of a folder, made anew when its files change."""
    return PromptRenderer(folder)


@lru_cache(maxsize=1)
def _task_templates() -> dict[str, dict[str, str]]:
    document: dict[str, dict[str, str]] = json.loads(
        (files("contract") / "task_prompts.json").read_text(encoding="utf-8")
    )
    return document


def _template_parts(folder: Path) -> tuple[dict[str, str], str]:
    config: dict[str, Any] = {}
    if (folder / "tokenizer_config.json").is_file():
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    file = folder / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if isinstance(template, list):
        template = next((one["template"] for one in template if one.get("name") == "default"), None)
    if not isinstance(template, str):
        raise ModelRefusedError("the folder has no chat template, so that it has no prompts to show")
    special = {name: _token_text(config[name]) for name in _SPECIAL_TOKENS if config.get(name) is not None}
    return special, template


def _token_text(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)  # Jinja's own escapes for HTML


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
