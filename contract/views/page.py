"""Part of a list, as every list of the API is returned."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from contract.views import View

MAX_PAGE = 100
"""Maximum number of objects in a page."""

Item = TypeVar("Item")


class Page(View, Generic[Item]):
    """Part of a list. The next part begins ``after`` the last object of this one."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
