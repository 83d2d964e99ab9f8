from __future__ import annotations

from pathlib import Path

from contract.broker import broker_settings, make_broker_folders


def test_the_embedded_broker_is_files_in_the_data_folder(tmp_path: Path) -> None:
    settings = broker_settings(None, tmp_path)
    assert settings["broker_url"] == "filesystem://"
    options = settings["broker_transport_options"]
    assert options["data_folder_in"] == options["data_folder_out"]
    assert not any(tmp_path.iterdir())
    make_broker_folders(settings)
    make_broker_folders(settings)
    folders = {options[name] for name in ("data_folder_in", "control_folder", "processed_folder")}
    assert len(folders) == 3
    assert all(Path(folder).is_dir() and Path(folder).is_relative_to(tmp_path) for folder in folders)


def test_a_server_gets_time_outs_and_no_folders(tmp_path: Path) -> None:
    settings = broker_settings("redis://127.0.0.1:6379/0", tmp_path)
    assert settings["broker_transport_options"]["socket_connect_timeout"] == 5
    make_broker_folders(settings)
    assert not any(tmp_path.iterdir())
    assert broker_settings("amqp://x", tmp_path)["broker_transport_options"] == {}
