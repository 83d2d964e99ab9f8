"""Walks through the pages of a list, fetching the next one only when it is asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

from contract.views.page import MAX_PAGE, Page

Item = TypeVar("Item")
Cursor = str | int | None


def page_size(num_wanted: int | None) -> int:
    """How many to ask for at once, where `num_wanted` are wanted in all; None wants all of them."""
    return MAX_PAGE if num_wanted is None else max(1, min(num_wanted, MAX_PAGE))


def walk(
    fetch: Callable[[Cursor], Page[Item]],
    cursor_of: Callable[[Item], Cursor],
    *,
    after: Cursor = None,
    num_wanted: int | None = None,
) -> Iterator[Item]:
    """The items of all pages, at most `num_wanted`; `fetch` gets the page that follows a cursor."""
    num_given = 0
    while num_wanted is None or num_given < num_wanted:
        page = fetch(after)
        for item in page.data if num_wanted is None else page.data[: num_wanted - num_given]:
            num_given += 1
            yield item
        if not page.has_more or not page.data:
            return
        after = cursor_of(page.data[-1])


async def walk_async(
    fetch: Callable[[Cursor], Awaitable[Page[Item]]],
    cursor_of: Callable[[Item], Cursor],
    *,
    after: Cursor = None,
    num_wanted: int | None = None,
) -> AsyncIterator[Item]:
    """As `walk`."""
    num_given = 0
    while num_wanted is None or num_given < num_wanted:
        page = await fetch(after)
        for item in page.data if num_wanted is None else page.data[: num_wanted - num_given]:
            num_given += 1
            yield item
        if not page.has_more or not page.data:
            return
        after = cursor_of(page.data[-1])
