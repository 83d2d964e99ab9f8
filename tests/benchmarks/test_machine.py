"""The head of a result table names what is installed, whichever build of vLLM that is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from benchmarks.machine import describe_machine
from benchmarks.paper.real.runner import PACKAGES


def test_versions_are_those_of_what_is_installed() -> None:
    (line,) = describe_machine([*PACKAGES, "vllm"])
    assert "torch " in line
    assert "vllm" in line


def test_what_is_not_installed_is_an_error() -> None:
    with pytest.raises(PackageNotFoundError):
        describe_machine(["no such distribution"])
