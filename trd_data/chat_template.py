"""Chat templates and tokenizers from a model's folder, without transformers.

Templates are rendered as by `apply_chat_template` of transformers, which a test compares with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from trd_data.errors import PromptError

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """A model's chat template."""

    def __init__(self, source: Any, special_tokens: Mapping[str, Any]) -> None:
        """Raises `PromptError` if `source` is not a template that can be read."""
        if isinstance(source, dict):
            source = source.get("default")
        if not isinstance(source, str):
            raise PromptError("the model has no chat template, so that no prompt can be written for it")
        try:
            self._template = _compiled(source)
        except TemplateError as error:
            raise PromptError(f"the model's chat template cannot be read: {error}") from error
        self._special_tokens = dict(special_tokens)

    def render(self, message: str, **arguments: Any) -> str:
        """Return the text that asks the model to answer one turn of the user; raises `PromptError`."""
        try:
            return self._template.render(
                messages=[{"role": "user", "content": message}],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **{**self._special_tokens, **arguments},
            )
        except TemplateError as error:
            raise PromptError(f"the model's chat template fails: {error}") from error


class FolderTokenizer:
    """The tokenizer in a model's folder: its tokenizer.json, chat template and special tokens."""

    def __init__(self, folder: Path) -> None:
        """Raises `PromptError` if the folder has no tokenizer that can be read."""
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            config: dict[str, Any] = {}
            for name in ("special_tokens_map.json", "tokenizer_config.json"):
                if (folder / name).is_file():
                    document = json.loads((folder / name).read_text(encoding="utf-8"))
                    config.update({key: value for key, value in document.items() if value is not None})
            file = folder / "chat_template.jinja"
            self.chat_template = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
        except Exception as error:  # tokenizers raises bare Exceptions
            raise PromptError(f"the model's tokenizer cannot be read: {error}") from error
        if isinstance(self.chat_template, list):
            self.chat_template = {one.get("name"): one.get("template") for one in self.chat_template}
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.special_tokens_map = {n: _token_text(config[n]) for n in _SPECIAL_TOKENS if config.get(n) is not None}

    def encode(self, text: str, /, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of `text`."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool) -> str:
        """Return the text of `token_ids`."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))


class _GenerationTag(Extension):
    """Accepts ``{% generation %}``, with which some templates mark the assistant's turns; it writes nothing."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line_number = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call block, as in transformers: what the block sets is not visible after it.
        return nodes.CallBlock(self.call_method("_rendered"), [], [], body).set_lineno(line_number)

    def _rendered(self, caller: Callable[[], str]) -> str:
        return caller()


@lru_cache(maxsize=32)
def _compiled(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)


def _token_text(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
