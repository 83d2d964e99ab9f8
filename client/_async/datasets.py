"""``/datasets``: upload, list, show, preview, delete."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from pathlib import Path

from client._async.transport import AsyncResource
from client.call import Call, path_part
from client.datasets import OnBytes, PreviewOptions, upload_call
from contract.views import Page
from contract.views.datasets import DatasetPreview, DatasetView, DeletedDataset


class AsyncDatasets(AsyncResource):
    """Uploaded problems of the key's owner."""

    async def upload(
        self, path: Path | str, *, columns: Mapping[str, str] | None = None, on_bytes: OnBytes | None = None
    ) -> DatasetView:
        """Upload a file of JSON Lines, JSON, CSV or Parquet, as docs/data.md lists them.

        `columns` maps our field names to the file's columns. Raises `InvalidRequestError`, whose `errors` name rows
        and fields.
        """
        return await self._transport.send(upload_call(self._transport.settings, Path(path), columns, on_bytes))

    async def page(self, *, after: str | None = None, limit: int = 20) -> Page[DatasetView]:
        """Return one page, newest first, after the dataset with the id `after`."""
        params = {"after": after, "limit": limit}
        return await self._transport.send(Call("GET", "/datasets", Page[DatasetView], params=params))

    def list(self, *, num_wanted: int | None = None) -> AsyncIterator[DatasetView]:
        """Iterate over all pages, newest first, up to `num_wanted` datasets."""
        return self._transport.walk("/datasets", Page[DatasetView], lambda dataset: dataset.id, num_wanted=num_wanted)

    async def get(self, dataset_id: str) -> DatasetView:
        """Return one dataset."""
        return await self._transport.send(Call("GET", f"/datasets/{path_part(dataset_id)}", DatasetView))

    async def preview(self, dataset_id: str, *, model: str, options: PreviewOptions | None = None) -> DatasetPreview:
        """Return the prompts that a job with the student `model` would build from the first rows."""
        params = {"model": model, **asdict(options or PreviewOptions())}
        path = f"/datasets/{path_part(dataset_id)}/preview"
        return await self._transport.send(Call("GET", path, DatasetPreview, params=params))

    async def delete(self, dataset_id: str) -> DeletedDataset:
        """Delete a dataset that no unfinished job needs."""
        call = Call("DELETE", f"/datasets/{path_part(dataset_id)}", DeletedDataset, is_repeatable=False)
        return await self._transport.send(call)
