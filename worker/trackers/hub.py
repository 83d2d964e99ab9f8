"""Pushes a finished run's last checkpoint to the Hugging Face hub, with its model card, by the hub's own library.

The hub is the one that the workers' ``HF_ENDPOINT`` names, by default https://huggingface.co. Every address that it
names for an upload is checked too. All files are one commit, so that no reader sees a part of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trd_data.network_address import AddressRefusedError, Network, pin_address

MAX_ANSWER_SECONDS = 120.0
"""Longest silence of the hub within one request."""
REFUSED = (400, 401, 402, 403, 404, 413, 422)
"""Statuses of answers that another try would not change."""


class PushRefusedError(Exception):
    """The hub, or a rule of this service, does not allow the push; a retry would not help."""


def push(folder: Path, settings: Mapping[str, Any], job_id: str, network: Network) -> str:
    """Push the newest checkpoint in an attempt's folder and return its page.

    Raises `PushRefusedError` if trying again cannot help; any other error is an outage.
    """
    # One commit of all files; the Xet pipeline makes several. Both are read when the library is imported.
    os.environ.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_TELEMETRY="1")
    import httpx2
    from huggingface_hub import HfApi, get_session
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    # A run that was resumed after its last step saves no checkpoint.
    manifests = sorted(folder.glob("run/checkpoints/step-*/manifest.json")) or [folder / "resume" / "manifest.json"]
    weights = manifests[-1].parent / settings["weights"]
    if not weights.is_dir():
        raise PushRefusedError(f"the last checkpoint has no folder {settings['weights']}/; choose another in weights")

    refusals: list[AddressRefusedError] = []

    def check(request: httpx2.Request) -> None:
        try:
            pin_address(str(request.url), network)
        except AddressRefusedError as error:
            refusals.append(error)  # the library raises another error in its place
            raise

    session = get_session()
    session.event_hooks["request"].append(check)
    session.timeout = httpx2.Timeout(MAX_ANSWER_SECONDS)
    api = HfApi(token=os.environ["HF_TOKEN"])
    try:
        api.create_repo(settings["repo"], private=settings["private"], exist_ok=True)
        commit = api.upload_folder(
            repo_id=settings["repo"], folder_path=weights, commit_message=f"The last checkpoint of {job_id}"
        )
    except Exception as error:
        if refusals:
            reason = f"an address of the hub {refusals[0]}; the operator can set TRD_HUB_NETWORK"
            raise PushRefusedError(reason) from error
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, HFValidationError | OfflineModeIsEnabled) or status in REFUSED:
            raise PushRefusedError(str(error)) from error
        raise
    return f"{api.endpoint}/{settings['repo']}/commit/{commit.oid}"
