"""Prefixed, time-ordered identifiers.

An id is a prefix that names the object's kind, and 26 characters of Crockford's base 32:
48 bits of milliseconds since the epoch, then 80 random bits. Ids of one kind sort by creation
time to the millisecond, which keyset pages rely on; they reveal no more than that.
"""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_NUM_CHARACTERS = 26

JOB_PREFIX = "job_"
DATASET_PREFIX = "ds_"
CHECKPOINT_PREFIX = "ckpt_"
KEY_PREFIX = "key_"
WEBHOOK_PREFIX = "wh_"
DELIVERY_PREFIX = "msg_"
AUDIT_PREFIX = "aud_"
ANSWER_PREFIX = "ans_"


def new_id(prefix: str, *, now_seconds: float | None = None) -> str:
    """Make an id of the kind that `prefix` names, for example ``job_01k…``."""
    return _encoded(prefix, time.time() if now_seconds is None else now_seconds, secrets.randbits(80))


def first_id(prefix: str, at: datetime) -> str:
    """Return the smallest id of the kind that could have been made at that time; later ids are not smaller."""
    return _encoded(prefix, max(0.0, at.timestamp()), 0)


def made_at(id_: str) -> datetime:
    """Return when the object with this id was made, to the millisecond."""
    number = 0
    for character in id_[-_NUM_CHARACTERS:]:
        number = number << 5 | _ALPHABET.index(character)
    return datetime.fromtimestamp((number >> 80) / 1000, UTC)


def _encoded(prefix: str, seconds: float, random_bits: int) -> str:
    number = (int(seconds * 1000) << 80) | random_bits
    characters = [_ALPHABET[(number >> (5 * i)) & 31] for i in range(_NUM_CHARACTERS)]
    return prefix + "".join(reversed(characters))
