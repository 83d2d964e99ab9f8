"""``/keys`` and ``/models``, and the probes ``/healthz`` and ``/readyz``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from urllib.parse import quote

from client.call import Call, part
from client.paging import Cursor, page_size, walk, walk_async
from client.transport import AsyncTransport, Transport
from contract.views.health import Health, Readiness
from contract.views.keys import CreatedKey, KeyView
from contract.views.models import ModelView
from contract.views.page import Page

HEALTH = Call("GET", "/healthz", Health)
READINESS = Call("GET", "/readyz", Readiness, answered_with=frozenset({503}))


def _create_key(name: str, owner: str | None, scopes: Sequence[str]) -> Call[CreatedKey]:
    document = {"name": name, "owner": owner, "scopes": list(scopes)}
    return Call("POST", "/keys", CreatedKey, json=document, is_repeatable=False)


def _keys(after: Cursor, limit: int) -> Call[Page[KeyView]]:
    return Call("GET", "/keys", Page[KeyView], params={"after": after, "limit": limit})


def _revoke_key(key_id: str) -> Call[KeyView]:
    return Call("DELETE", f"/keys/{part(key_id)}", KeyView)


_MODELS = Call("GET", "/models", Page[ModelView])


def _model(name: str) -> Call[ModelView]:
    return Call("GET", f"/models/{quote(name, safe='/')}", ModelView)  # a hub id has a slash


class Keys:
    """For admins."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, name: str, *, owner: str | None = None, scopes: Sequence[str] = ("submit",)) -> CreatedKey:
        """A new key; the answer alone holds it. No owner takes the caller's."""
        return self._transport.send(_create_key(name, owner, scopes))

    def list(self, *, num_wanted: int | None = None) -> Iterator[KeyView]:
        """Keys of all owners, newest first, the revoked ones too."""
        limit = page_size(num_wanted)
        return walk(lambda after: self._transport.send(_keys(after, limit)), lambda key: key.id, num_wanted=num_wanted)

    def revoke(self, key_id: str) -> KeyView:
        """From now on the key is refused."""
        return self._transport.send(_revoke_key(key_id))


class AsyncKeys:
    """As `Keys`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(self, name: str, *, owner: str | None = None, scopes: Sequence[str] = ("submit",)) -> CreatedKey:
        """A new key; the answer alone holds it. No owner takes the caller's."""
        return await self._transport.send(_create_key(name, owner, scopes))

    def list(self, *, num_wanted: int | None = None) -> AsyncIterator[KeyView]:
        """Keys of all owners, newest first, the revoked ones too."""
        limit = page_size(num_wanted)
        return walk_async(
            lambda after: self._transport.send(_keys(after, limit)), lambda key: key.id, num_wanted=num_wanted
        )

    async def revoke(self, key_id: str) -> KeyView:
        """From now on the key is refused."""
        return await self._transport.send(_revoke_key(key_id))


class Models:
    """What a job may name as student or teacher."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Sequence[ModelView]:
        """The operator's allow-list."""
        return self._transport.send(_MODELS).data

    def get(self, name: str) -> ModelView:
        """One model, by the name that a spec gives."""
        return self._transport.send(_model(name))


class AsyncModels:
    """As `Models`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self) -> Sequence[ModelView]:
        """The operator's allow-list."""
        return (await self._transport.send(_MODELS)).data

    async def get(self, name: str) -> ModelView:
        """One model, by the name that a spec gives."""
        return await self._transport.send(_model(name))
