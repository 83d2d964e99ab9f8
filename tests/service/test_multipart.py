from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.datasets.multipart import Form, receive_form
from service.errors import InvalidRequestError


def encoded(**parts: object) -> tuple[str, bytes]:
    request = httpx.Request("POST", "http://x", **parts)  # type: ignore[arg-type]
    return request.headers["content-type"], request.read()


def receive(content_type: str, content: bytes, size: int = 7) -> tuple[Form, bytes]:
    received = bytearray()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), size):
            yield content[start : start + size]

    async def sink(piece: bytes) -> None:
        received.extend(piece)

    form = asyncio.run(receive_form(content_type, pieces(), sink))
    return form, bytes(received)


@given(st.binary(max_size=300), st.integers(1, 400))
def test_a_file_comes_through_whole(content: bytes, size: int) -> None:
    content_type, body = encoded(files={"file": ("rows.jsonl", content)}, data={"purpose": "fine-tune"})
    form, received = receive(content_type, body, size)
    assert received == content
    assert form.filename == "rows.jsonl"
    assert form.fields == {"purpose": "fine-tune"}


@pytest.mark.parametrize(
    ("content_type", "content", "words"),
    [
        ("multipart/form-data", b"", "needs a boundary"),
        ("multipart/form-data; boundary=b", b"nonsense", "cannot be read"),
        (f"multipart/form-data; boundary={'b' * 400}", b"--b", "cannot be read"),
        ("multipart/form-data; boundary=b", b"--b\r\n", "ends before"),
        (*encoded(files={"a": (None, "1")}), "holds no file"),
        (*encoded(files=[("a", ("1", b"x")), ("b", ("2", b"y"))]), "more than one file"),
        (*encoded(files=[(f"a{i}", (None, "x")) for i in range(30)]), "more than 20 parts"),
        (*encoded(files={"purpose": (None, "x" * 20_000)}), "purpose: a form field may have"),
    ],
    ids=range(8),  # the boundaries are random, and two test processes must collect the same names
)
def test_forms_that_are_refused(content_type: str, content: bytes, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        receive(content_type, content)
