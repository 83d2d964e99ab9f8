"""Chat templates and tokenizers from a model's folder, without transformers.

Templates are rendered as by `apply_chat_template` of transformers, and tokens are added as by its tokenizers; tests
compare both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Template
from tokenizers import AddedToken, Tokenizer

from trd_data.errors import PromptError
from trd_data.template_sandbox import BoundedEnvironment, bounded_work

MAX_JSON_BYTES = 2**26
"""Largest size of a JSON file beside tokenizer.json."""


class ChatTemplate:
    """A model's chat template."""

    def __init__(self, source: Any, special_tokens: Mapping[str, Any]) -> None:
        """Compile the template; raise `PromptError` if `source` is none that can be read."""
        if isinstance(source, dict):
            source = source.get("default")
        if not isinstance(source, str):
            raise PromptError("the model has no chat template, so that no prompt can be written for it")
        try:
            self._template = _compiled(source)
        except Exception as error:  # the parser and Python's compiler raise more than jinja2's errors
            raise PromptError(f"the model's chat template cannot be read: {_reason(error)}") from error
        self._special_tokens = dict(special_tokens)

    def render(self, message: str, **arguments: Any) -> str:
        """Return the text that asks the model to answer one turn of the user; raises `PromptError`."""
        return self.render_chat([{"role": "user", "content": message}], add_generation_prompt=True, **arguments)

    def render_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool, **arguments: Any
    ) -> str:
        """Return the text of a whole chat; raises `PromptError`."""
        try:
            with bounded_work():
                return self._template.render(
                    messages=list(messages),
                    tools=None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **{**self._special_tokens, **arguments},
                )
        except Exception as error:  # expressions of a template raise any of Python's errors
            raise PromptError(f"the model's chat template fails: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error)[:500] or type(error).__name__


class FolderTokenizer:
    """The tokenizer in a model's folder: its tokenizer.json, chat template and special tokens."""

    def __init__(self, folder: Path) -> None:
        """Read the tokenizer; raise `PromptError` if the folder has none that can be read."""
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = read_json_object(folder / "tokenizer_config.json")
            added = _TokenSettings.read(folder, config)
            self.special_tokens_map = {name: _token_text(token) for name, token in added.named.items()}
            self.chat_template = folder_chat_template(folder, config)
            known = list(self._tokenizer.get_added_tokens_decoder().values())
            self._tokenizer.add_tokens(added.to_add(known))
            self._tokenizer.encode_special_tokens = bool(config.get("split_special_tokens"))
        except Exception as error:  # tokenizers raises bare Exceptions
            raise PromptError(f"the model's tokenizer cannot be read: {_reason(error)}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, /, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of `text`."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool) -> str:
        """Return the text of `token_ids`."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))


@dataclass(frozen=True)
class _TokenSettings:
    """The tokens that a folder's files name besides those of tokenizer.json, by the rules of transformers."""

    named: dict[str, str | AddedToken]
    """Special tokens by name, such as bos_token."""
    extra: list[str | AddedToken]
    listed: list[AddedToken]
    """Tokens of added_tokens_decoder, or of the older added_tokens.json, in the order of their ids."""

    @classmethod
    def read(cls, folder: Path, config: Mapping[str, Any]) -> _TokenSettings:
        named = {name: value for name, value in config.items() if name.endswith("_token")}
        extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
        by_id = config.get("added_tokens_decoder")
        if by_id is None:  # files of older versions, which the newer field replaces
            older = read_json_object(folder / "special_tokens_map.json")
            named |= {name: value for name, value in older.items() if name.endswith("_token")}
            extra = extra or older.get("extra_special_tokens") or older.get("additional_special_tokens") or []
            numbers = read_json_object(folder / "added_tokens.json")
            specials = {_token_text(token) for token in [*named.values(), *extra] if token is not None}
            by_id = {
                number: {"content": text, "normalized": text not in specials, "special": text in specials}
                for text, number in numbers.items()
            }
        if isinstance(extra, dict):
            named, extra = {**named, **extra}, []
        listed = [_token(token) for _, token in sorted(by_id.items(), key=lambda item: int(item[0]))]
        given = {name: _token(token) for name, token in named.items() if isinstance(token, str | dict)}
        return cls(given, [_token(token) for token in extra], [t for t in listed if isinstance(t, AddedToken)])

    def to_add(self, known: Iterable[AddedToken]) -> list[AddedToken]:
        """Return the tokens that a tokenizer with the `known` ones lacks, or has with other settings."""
        same = {repr(token) for token in known}
        wanted: list[str | AddedToken] = [token for token in self.listed if repr(token) not in same]
        texts = {_token_text(token) for token in [*known, *wanted]}
        wanted += [token for token in [*self.named.values(), *self.extra] if _token_text(token) not in texts]
        specials = {_token_text(token) for token in self.named.values()}
        return [_as_added(token, is_special=_token_text(token) in specials) for token in wanted]


def _as_added(token: str | AddedToken, *, is_special: bool) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    token.special = token.special or is_special
    return token


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a file of a model's folder, empty if there is no such file; raises `PromptError`."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise PromptError(f"{path.name} has more than {MAX_JSON_BYTES} bytes")
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise PromptError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise PromptError(f"{path.name} is not a JSON object")
    return document


def folder_special_tokens(folder: Path) -> dict[str, str]:
    """Return the special tokens that the files of a folder name, such as bos_token; raises `PromptError`."""
    settings = _TokenSettings.read(folder, read_json_object(folder / "tokenizer_config.json"))
    return {name: _token_text(token) for name, token in settings.named.items()}


def folder_chat_template(folder: Path, config: Mapping[str, Any] | None = None) -> Any:
    """Return the template as transformers finds it: a file comes before the tokenizer's configuration."""
    for name in ("chat_template.jinja", "additional_chat_templates/default.jinja"):
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    template = (config or read_json_object(folder / "tokenizer_config.json")).get("chat_template")
    if isinstance(template, list):
        return {one.get("name"): one.get("template") for one in template}
    return template


@lru_cache(maxsize=32)
def _compiled(source: str) -> Template:
    return BoundedEnvironment().from_string(source)


_TOKEN_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def _token(token: Any) -> str | AddedToken:
    if not isinstance(token, dict):
        return str(token)
    given = {name: token[name] for name in _TOKEN_FIELDS if name in token}
    return AddedToken(**{"special": True, **given})


def _token_text(token: Any) -> str:
    if isinstance(token, AddedToken):
        return str(token.content)
    return str(token["content"]) if isinstance(token, dict) else str(token)
