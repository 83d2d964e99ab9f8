"""Prefixed, time-ordered identifiers.

An id is a prefix that names the object's kind, and 26 characters of Crockford's base 32:
48 bits of milliseconds since the epoch, then 80 random bits. Ids of one kind sort by creation
time to the millisecond, which keyset pages rely on; they reveal no more than that.
"""

from __future__ import annotations

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_NUM_CHARACTERS = 26

JOB_PREFIX = "job_"
DATASET_PREFIX = "ds_"
CHECKPOINT_PREFIX = "ckpt_"
KEY_PREFIX = "key_"


def new_id(prefix: str, *, now_seconds: float | None = None) -> str:
    """A fresh id of the kind that `prefix` names, for example ``job_01k…``."""
    milliseconds = int((time.time() if now_seconds is None else now_seconds) * 1000)
    number = (milliseconds << 80) | secrets.randbits(80)
    characters = [_ALPHABET[(number >> (5 * i)) & 31] for i in range(_NUM_CHARACTERS)]
    return prefix + "".join(reversed(characters))
