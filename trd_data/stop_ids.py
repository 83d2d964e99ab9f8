"""The tokens that end a completion: gathered from all files of a model's folder that name some.

Runs without a tensor library and without a tokenizer, so that the service can tell before a job is queued whether the
files agree.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trd_data.chat_template import ChatTemplate, folder_chat_template, folder_special_tokens, read_json_object
from trd_data.errors import PromptError
from trd_data.notices import Notice

GENERATION_FILE = "generation_config.json"
_TOKENIZER = "the tokenizer"
_TEMPLATE = "the chat template"
_ANSWER = "An answer that ends here."


@dataclass(frozen=True)
class StopIds:
    """The ids of tokens that end a completion, by the place that names them."""

    by_place: Mapping[str, tuple[int, ...]]
    spellings: Mapping[int, str]

    @property
    def ids(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(dict.fromkeys(token_id for ids in self.by_place.values() for token_id in ids))

    def notice(self, role: str) -> Notice | None:
        """Return a notice if a place names a token that other programs would not stop at.

        They stop at those of generation_config.json, or else at the tokenizer's.
        """
        known = self.by_place[GENERATION_FILE] or self.by_place[_TOKENIZER]
        others = {place: set(ids).difference(known) for place, ids in self.by_place.items()}
        missing = set().union(*others.values())
        if not missing:
            return None
        places = "; ".join(f"{place}: {self._shown(ids)}" for place, ids in self.by_place.items() if ids)
        first = min(missing)
        return Notice(
            "stop_ids",
            f"the files of the {role}'s folder name different tokens that end a completion ({places}); samples end at "
            "any of them",
            f"write all that end a turn as eos_token_id into the model's {GENERATION_FILE}, so that every program "
            "stops there",
            len(missing),
            f"{self._shown([first])}, of {next(place for place, ids in others.items() if first in ids)}",
        )

    def _shown(self, ids: Collection[int]) -> str:
        return ", ".join(f"{i} {self.spellings.get(i, '?')!r:.40}" for i in ids)


def find_stop_ids(folder: Path, vocabulary: Mapping[str, int], special_tokens: Collection[str]) -> StopIds:
    """Return what generation_config.json, config.json, the tokenizer's files and the chat template of `folder` name.

    `vocabulary` gives each token's id, and `special_tokens` those that stand for no text. Raises `PromptError` for a
    file that cannot be read.
    """
    config = read_json_object(folder / "config.json")
    inner = config.get("text_config")
    eos = folder_special_tokens(folder).get("eos_token", "")
    by_place = {
        GENERATION_FILE: _listed(read_json_object(folder / GENERATION_FILE)),
        _TOKENIZER: (vocabulary[eos],) if eos in vocabulary else (),
        "config.json": _listed(config) or _listed(inner if isinstance(inner, dict) else {}),
        _TEMPLATE: _end_of_turn(folder, vocabulary, special_tokens),
    }
    return StopIds(by_place, {token_id: token for token, token_id in vocabulary.items()})


def _listed(config: Mapping[str, Any]) -> tuple[int, ...]:
    given = config.get("eos_token_id")
    ids = given if isinstance(given, list) else [given]
    return tuple(dict.fromkeys(token_id for token_id in ids if type(token_id) is int and token_id >= 0))


def _end_of_turn(folder: Path, vocabulary: Mapping[str, int], special_tokens: Collection[str]) -> tuple[int, ...]:
    """Return the special token that the chat template writes after an answer, if it writes one."""
    messages = [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        template = ChatTemplate(folder_chat_template(folder), folder_special_tokens(folder))
        text = template.render_chat(messages, add_generation_prompt=False)
    except PromptError:
        return ()
    after = text.rpartition(_ANSWER)[2].lstrip() if _ANSWER in text else ""
    ends = [token for token in special_tokens if token and token in vocabulary and after.startswith(token)]
    return (vocabulary[max(ends, key=len)],) if ends else ()
