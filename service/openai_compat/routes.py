"""Routes that refuse a wrong value with 400: the `openai` client's users catch its `BadRequestError`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from service.errors import BadRequestError, InvalidRequestError, invalid_parameters


class OpenAIRoute(APIRoute):
    """A route under ``/v1``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The framework's handler, with the native 422 turned into 400."""
        handle = super().get_route_handler()

        async def refusing_with_400(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise BadRequestError.like(invalid_parameters(error)) from error
            except InvalidRequestError as error:
                raise BadRequestError.like(error) from error

        return refusing_with_400
