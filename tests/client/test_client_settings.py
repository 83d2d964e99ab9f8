"""Where a client asks, and with which key."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from client import Client, ClientSettings
from client.call import Call
from client.errors import AuthenticationError, ConnectionFailedError, SettingsError, UnexpectedAnswerError
from client.settings import LocalService
from contract.settings import DataFolderSettings
from contract.views import View
from tests.client.conftest import RunningService
from tests.environment import settings_from
from tests.servers import free_port


def test_defaults_are_the_local_service_without_a_key(tmp_path: Path) -> None:
    settings = settings_from(ClientSettings, {"TRD_DATA_DIR": str(tmp_path)})
    assert (settings.url, settings.api_key) == ("http://127.0.0.1:8000", None)


def test_what_is_given_wins_over_the_environment_and_that_over_the_local_service(tmp_path: Path) -> None:
    LocalService(url="http://127.0.0.1:8123", api_key="local").save(tmp_path)
    environment = {"TRD_DATA_DIR": str(tmp_path)}
    local = settings_from(ClientSettings, environment)
    assert (local.url, local.api_key) == ("http://127.0.0.1:8123", "local")
    environment |= {"TRD_URL": "https://elsewhere.example/", "TRD_API_KEY": "theirs"}
    elsewhere = settings_from(ClientSettings, environment)
    assert (elsewhere.url, elsewhere.api_key) == ("https://elsewhere.example", "theirs")
    given = settings_from(ClientSettings, environment, url="http://[::1]:1", api_key="mine")
    assert (given.url, given.api_key) == ("http://[::1]:1", "mine")


@pytest.mark.parametrize("folder", ["~/data", " {home}/data ", "~/data\n"])
def test_the_local_service_is_found_in_the_folder_that_trd_up_takes(folder: str, tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "TRD_DATA_DIR": folder.format(home=tmp_path)}
    data_dir = settings_from(DataFolderSettings, environment).data_dir
    data_dir.mkdir()
    LocalService(url="http://127.0.0.1:8123", api_key="local").save(data_dir)
    assert settings_from(ClientSettings, environment).api_key == "local"


def test_a_client_of_another_service_needs_no_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").touch()
    monkeypatch.chdir(tmp_path)
    assert settings_from(ClientSettings, {"TRD_URL": "https://host"}).url == "https://host"


def test_the_local_key_goes_nowhere_else(tmp_path: Path) -> None:
    LocalService(url="http://127.0.0.1:8123", api_key="local").save(tmp_path)
    environment = {"TRD_DATA_DIR": str(tmp_path), "TRD_URL": "http://127.0.0.1:8124"}
    assert settings_from(ClientSettings, environment).api_key is None
    same = settings_from(ClientSettings, {**environment, "TRD_URL": "http://127.0.0.1:8123/"})
    assert same.api_key == "local"


def test_the_local_key_is_for_its_user_alone(tmp_path: Path) -> None:
    path = LocalService(url="http://127.0.0.1:1", api_key="local").save(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("{")
    assert LocalService.of(tmp_path) is None


@pytest.mark.parametrize("url", ["https://evil.example", "http://127.0.0.1.evil.example:80", "http://[", ""])
def test_a_folder_cannot_lead_the_users_key_elsewhere(tmp_path: Path, url: str) -> None:
    LocalService(url=url, api_key="x" * 20).save(tmp_path)
    settings = settings_from(ClientSettings, {"TRD_DATA_DIR": str(tmp_path), "TRD_API_KEY": "the-users-real-key"})
    assert (settings.url, settings.api_key) == ("http://127.0.0.1:8000", "the-users-real-key")


def test_another_users_file_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LocalService(url="http://127.0.0.1:8123", api_key="theirs").save(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    assert LocalService.of(tmp_path) is None


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000", "localhost:8000", "ftp://host", "http://", "http:/host", "http://host?x=1", "http://::1:8000",
     "http://[", "http://host:http", "http://host:99999", "http://a host", "'http://host'", " ", "http://me:pw@host"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="TRD_URL") as raised:
        Client(url)
    assert raised.value.hint is not None
    assert "pw" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        (" http://host:8000/ ", "http://host:8000"),
        ("HTTPS://Host.Example/", "https://host.example"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_an_address_in_another_form_is_taken(url: str, meant: str) -> None:
    assert settings_from(ClientSettings, {"TRD_URL": url}).url == meant


def test_a_key_is_stripped_and_never_shown() -> None:
    assert settings_from(ClientSettings, {"TRD_API_KEY": " trd_key\n"}).api_key == "trd_key"
    with pytest.raises(SettingsError, match="no key has") as raised:
        settings_from(ClientSettings, {"TRD_API_KEY": "trd_s\u00e9cret"})
    assert "cret" not in str(raised.value)


def test_an_unreachable_service_is_reported_with_a_remedy(tmp_path: Path) -> None:
    settings = ClientSettings(url=f"http://127.0.0.1:{free_port()}", max_retries=0)
    with Client(settings=settings) as client, pytest.raises(ConnectionFailedError, match="cannot be reached") as raised:
        client.health()
    assert raised.value.was_never_sent
    assert "trd up" in (raised.value.hint or "")


def test_a_missing_and_a_wrong_key_are_distinguished(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRD_DATA_DIR", str(service.data_dir))
    for key, code in ((None, "missing_api_key"), ("trd_wrong", "invalid_api_key")):
        with Client(service.url, key) as client:
            assert client.health().status == "ok"
            assert client.readiness().status == "ready"
            with pytest.raises(AuthenticationError) as raised:
                client.jobs.page()
        assert (raised.value.status, raised.value.code) == (401, code)
        assert "TRD_API_KEY" in (raised.value.hint or "")
        assert raised.value.request_id


class Other(View):
    status: int


def test_an_answer_of_another_form_is_reported(service: RunningService) -> None:
    with Client(service.url) as client, pytest.raises(UnexpectedAnswerError, match="status"):
        client._transport.send(Call("GET", "/healthz", Other))


def test_the_openai_packages_address_is_not_ours(tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:8000/v1", "https://host/prefix/v1/"):
        with pytest.raises(SettingsError, match="which is for the openai package"):
            settings_from(ClientSettings, {"TRD_DATA_DIR": str(tmp_path), "TRD_URL": url})
    environment = {"TRD_DATA_DIR": str(tmp_path), "TRD_URL": "https://host/prefix/"}
    assert settings_from(ClientSettings, environment).url == "https://host/prefix"
