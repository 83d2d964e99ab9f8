from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from service.keys.secret import is_well_formed, key_digest, load_pepper, new_key


def test_a_key_has_160_random_bits_and_a_checksum() -> None:
    keys = {new_key() for _ in range(200)}
    assert len(keys) == 200
    assert all(is_well_formed(key) and len(key) == 4 + 32 + 7 for key in keys)
    assert set("".join(key[4:36] for key in keys)) == set("0123456789abcdefghjkmnpqrstvwxyz")


def test_a_mistyped_key_is_recognised() -> None:
    key = new_key()
    for position in range(4, len(key)):
        other = "0" if key[position] != "0" else "1"
        assert not is_well_formed(key[:position] + other + key[position + 1 :])
    for wrong in ("", "trd_", key[:-1], key + "0", "xyz_" + key[4:], "é" * 43):
        assert not is_well_formed(wrong)


def test_the_digest_hangs_on_the_pepper() -> None:
    assert key_digest("a", "p") == key_digest("a", "p")
    assert len({key_digest("a", "p"), key_digest("a", "q"), key_digest("b", "p")}) == 3
    assert len(key_digest("a", "p")) == 64


def test_the_pepper_is_made_once_and_read_by_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(load_pepper(None, folder))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len(found[0]) == 64
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("configured", ["from-the-environment"])
def test_a_configured_pepper_is_taken(tmp_path: Path, configured: str) -> None:
    assert load_pepper(configured, tmp_path / "data") == configured
    assert not (tmp_path / "data").exists()
