from __future__ import annotations

import stat
from pathlib import Path

import pytest

from contract.database import Database
from contract.settings import make_private_folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_folders_are_their_users_alone_and_old_ones_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o750)
    for _ in range(2):
        make_private_folder(tmp_path / "shared" / "data" / "scratch")
    assert mode(tmp_path / "shared") == 0o750
    assert (mode(tmp_path / "shared" / "data"), mode(tmp_path / "shared" / "data" / "scratch")) == (0o700, 0o700)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_private_folder(tmp_path / "file")


def test_the_database_makes_the_data_folder_private(tmp_path: Path) -> None:
    Database(f"sqlite:///{tmp_path / 'data' / 'trd.db'}").dispose()
    assert mode(tmp_path / "data") == 0o700
