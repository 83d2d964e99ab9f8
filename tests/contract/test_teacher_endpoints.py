"""What an operator may say about served teachers; refused values are never repeated."""

from __future__ import annotations

import json
from typing import Any

import pytest

from contract.server_groups import TeacherEndpoint
from contract.settings import DeploymentSettings
from tests.environment import settings_from

GOOD: dict[str, Any] = {"url": "https://teacher.example/v1", "model": "owner/model"}


def parse_endpoints(setting: str) -> dict[str, TeacherEndpoint]:
    return settings_from(DeploymentSettings, {"TRD_TEACHER_ENDPOINTS": setting}).teacher_endpoints


def test_endpoints_are_read_by_name() -> None:
    found = parse_endpoints(json.dumps({"big": {**GOOD, "api": "vllm", "api_key_env": "BIG_API_KEY"}, "plain": GOOD}))
    assert list(found) == ["big", "plain"]
    assert found["big"].serves_logprobs
    assert not found["plain"].serves_logprobs
    assert found["big"].api_key_env == "BIG_API_KEY"
    assert parse_endpoints("") == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": "http://teacher.example/v1"}, r"big: .*url must be https if network is public"),
        ({"url": "http://10.0.0.7/v1", "network": "private"}, "url must be https"),
        ({"url": "https://user:pa55@teacher.example/v1"}, "without a user"),
        ({"url": "https://teacher.example/v1?key=pa55"}, "query"),
        ({"url": "ftp://127.0.0.1/v1", "network": "loopback"}, "url must be http or https"),
        ({"replicas": [GOOD["url"], "http://teacher.example/v1"]}, "the same holds for replicas"),
        ({"api_key_env": "pa55"}, r"big\.api_key_env: .*pattern"),
        ({"api_key_env": "HOME"}, r"big\.api_key_env: .*pattern"),
        ({"api_key": "pa55"}, r"big\.api_key: .*not permitted"),
        ({"model": ""}, r"big\.model"),
        ({"max_tries": 0}, r"big\.max_tries"),
    ],
)
def test_what_is_wrong_is_named_and_its_value_is_not_shown(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        parse_endpoints(json.dumps({"big": {**GOOD, **changes}}))
    assert str(raised.value).startswith("TRD_TEACHER_ENDPOINTS: ")
    assert "pa55" not in str(raised.value)


@pytest.mark.parametrize("setting", ["big=https://pa55/v1", "[1]", '"pa55"'])
def test_what_is_no_object_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match="TRD_TEACHER_ENDPOINTS: ") as raised:
        parse_endpoints(setting)
    assert "pa55" not in str(raised.value)


def test_loopback_may_be_http() -> None:
    setting = json.dumps({"here": {"url": "http://127.0.0.1:8000/v1", "model": "m", "network": "loopback"}})
    assert parse_endpoints(setting)["here"].network == "loopback"
