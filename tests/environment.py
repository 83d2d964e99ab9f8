"""Settings as a process with a given environment would read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import pytest

from contract.settings import EnvironmentSettings

Settings = TypeVar("Settings", bound=EnvironmentSettings)


def settings_from(settings: type[Settings], environment: Mapping[str, str], **given: Any) -> Settings:
    """Return the settings of `environment`; no other variable of ours is set while a test runs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return settings.from_environment(**given)
