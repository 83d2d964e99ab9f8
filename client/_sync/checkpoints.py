# Generated from client/_async/checkpoints.py by `python client/generate.py`. Do not edit.

"""``/jobs/{id}/checkpoints``: list, manifest, delete, and downloads that continue after an interruption."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from client._sync.transport import Resource
from client.call import Call, path_part
from client.concurrency import Group, run_blocking, sse_frames
from client.datasets import OnBytes
from client.downloads import (
    LATEST,
    NUM_PARALLEL,
    Download,
    Failures,
    PartialFile,
    disk_errors,
    name_files,
    wanted_files,
)
from client.errors import TrdError
from client.events import SILENCE_SECONDS, ChatPart, chat_part
from contract.views import Page, View
from contract.views.checkpoints import CheckpointView, DeletedCheckpoint, ManifestView


class Checkpoints(Resource):
    """The checkpoints of one job."""

    def list(self, job_id: str) -> Sequence[CheckpointView]:
        """Return the complete checkpoints, by step."""
        path = f"/jobs/{path_part(job_id)}/checkpoints"
        return (self._transport.send(Call("GET", path, Page[CheckpointView]))).data

    def manifest(self, job_id: str, step: int | str = LATEST) -> ManifestView:
        """Return one checkpoint with its files, their sizes and digests."""
        path = f"/jobs/{path_part(job_id)}/checkpoints/{path_part(str(step))}"
        return self._transport.send(Call("GET", path, ManifestView))

    def delete(self, job_id: str, step: int | str) -> DeletedCheckpoint:
        """Delete one; refused for the checkpoint from which the job would continue."""
        path = f"/jobs/{path_part(job_id)}/checkpoints/{path_part(str(step))}"
        return self._transport.send(Call("DELETE", path, DeletedCheckpoint, is_repeatable=False))

    def chat(
        self,
        job_id: str,
        step: int | str,
        messages: Sequence[Mapping[str, str]],
        *,
        model: str = "checkpoint",
        temperature: float = 0.0,
        max_new_tokens: int = 512,
    ) -> Generator[ChatPart, None]:
        """Yield the parts of the answer of a checkpoint, of its base model (base) or of its teacher (teacher) as a free
        worker generates them. If you stop early, close the generator: the worker then stops, too."""
        path = f"/jobs/{path_part(job_id)}/checkpoints/{path_part(str(step))}/chat"
        sampling = {"temperature": temperature, "max_new_tokens": max_new_tokens}
        question = {"model": model, "messages": [dict(message) for message in messages], **sampling}
        call = Call("POST", path, View, json=question, read_seconds=SILENCE_SECONDS, is_repeatable=False)
        with self._transport.stream(call) as response, closing(sse_frames(response)) as frames:
            for frame in frames:
                if frame.data:
                    yield chat_part(frame)

    def download(
        self,
        manifest: ManifestView,
        target: Path | str,
        *,
        folder: str | None = None,
        num_parallel: int = NUM_PARALLEL,
        on_bytes: OnBytes | None = None,
    ) -> Download:
        """Download the checkpoint's files, or those of one folder (model, adapter, state), into the folder `target`.

        A file with the right digest is not downloaded again; an interrupted one, also by an earlier process, continues
        at its last byte. The files get their names, and replace earlier ones, once every sha256 is the manifest's.
        Raises `DownloadError` and the errors of the connection; the download can then be called again.

        Other files in `target` stay. If they are of another model, so that a loader would mix both, nothing is
        downloaded.
        """
        with disk_errors():
            files = run_blocking(wanted_files, manifest, Path(target), folder, on_bytes)
            group = Group(num_parallel)
            group.run(lambda file: self._fetch(file, group), files)
            run_blocking(name_files, files)
        return Download(Path(target), manifest.step, [file.path for file in files], sum(f.size for f in files))

    def _fetch(self, file: PartialFile, group: Group) -> None:
        failures = Failures(file)
        while not group.is_stopped() and not run_blocking(file.is_complete):
            try:
                with self._transport.stream(file.call()) as response:
                    with file.receiving(response) as write:
                        for piece in response.iter_raw():
                            run_blocking(write, piece)
                            if group.is_stopped():
                                return
            except TrdError as error:
                group.sleep(failures.pause(error))
