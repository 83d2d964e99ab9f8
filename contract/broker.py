"""How both sides reach the broker: the Celery settings that producer and worker must share.

Pure but for `make_broker_folders`. What only one side needs (the producer's time-outs, the worker's
acknowledgements) is that side's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contract.private_folder import make_private_folder

EMBEDDED_BROKER_URL = "filesystem://"
"""The broker of embedded mode: messages are files in the data folder, no server needed."""


def broker_settings(url: str | None, data_dir: Path) -> dict[str, Any]:
    """Celery's `broker_url` and `broker_transport_options` for `url` (`BROKER_URL`); None is embedded.

    Both are to be given as they are: ``Celery().conf.update(broker_settings(url, data_dir))``.
    """
    url = url or EMBEDDED_BROKER_URL
    return {"broker_url": url, "broker_transport_options": _transport_options(url, data_dir)}


def _transport_options(url: str, data_dir: Path) -> dict[str, Any]:
    scheme = url.partition("://")[0]
    if scheme == "filesystem":
        return _folder_options(data_dir)
    if scheme in ("redis", "rediss"):
        # Seconds. A broker that hangs must not hang a request, nor a worker that could poll the database.
        return {"socket_connect_timeout": 5, "socket_timeout": 30, "socket_keepalive": True}
    return {}


def _folder_options(data_dir: Path) -> dict[str, Any]:
    folder = data_dir.resolve() / "broker"
    messages = str(folder / "messages")
    return {
        # One folder for in and out: what one side writes the other reads.
        "data_folder_in": messages,
        "data_folder_out": messages,
        "control_folder": str(folder / "control"),
        # False would move every message through the system's temporary folder, which may be another
        # file system, where a move is a copy and two readers can both win it.
        "store_processed": True,
        "processed_folder": str(folder / "processed"),
    }


def make_broker_folders(settings: dict[str, Any]) -> None:
    """Create the folders that `settings` (of `broker_settings`) name; kombu does not. Safe to repeat."""
    options = settings["broker_transport_options"]
    for name in ("data_folder_in", "data_folder_out", "control_folder", "processed_folder"):
        if name in options:
            make_private_folder(Path(options[name]))
