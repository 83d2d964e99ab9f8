"""The form of a key, and the digest under which it is stored.

``trd_`` + 32 random characters of base 32 (160 bits) + 7 characters of checksum, which identifies a
mistyped key without a query. Random keys need no slow hash: an HMAC with a secret
pepper is as strong, and costs microseconds on every request.
"""

from __future__ import annotations

import hmac
import secrets
import zlib
from pathlib import Path

from contract.settings import make_private_folder

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PREFIX = "trd_"
_NUM_RANDOM = 32
_NUM_CHECKSUM = 7


def new_key() -> str:
    """Return a new key. It is shown once and never stored."""
    body = _PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_NUM_RANDOM))
    return body + _checksum(body)


def is_well_formed(key: str) -> bool:
    """Return True if the key has our form and its checksum is right."""
    body = key[:-_NUM_CHECKSUM]
    return (
        key.startswith(_PREFIX)
        and len(body) == len(_PREFIX) + _NUM_RANDOM
        and key.isascii()
        and hmac.compare_digest(_checksum(body), key[-_NUM_CHECKSUM:])
    )


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    return "".join(_ALPHABET[(number >> (5 * i)) & 31] for i in range(_NUM_CHECKSUM))


def key_digest(key: str, pepper: str) -> str:
    """Return the HMAC-SHA256 of the key, in hexadecimal."""
    return hmac.digest(pepper.encode(), key.encode(), "sha256").hex()


def load_pepper(configured: str | None, data_dir: Path) -> str:
    """Return the configured pepper, else the one in the data folder, made there at the first start."""
    if configured is not None:
        return configured
    path = data_dir / "key-pepper"
    make_private_folder(data_dir)
    draft = data_dir / f"key-pepper.{secrets.token_hex(8)}"
    draft.touch(mode=0o600)
    draft.write_text(secrets.token_hex(32), encoding="ascii")
    try:
        path.hardlink_to(draft)  # fails if another process was first: its pepper is used
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return path.read_text(encoding="ascii").strip()
