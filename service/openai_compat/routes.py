"""Routes that answer 400 to an invalid value: users of the `openai` client catch its `BadRequestError`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import Response

from service.bodies import JsonRoute, invalid_request
from service.errors import BadRequestError, InvalidRequestError


class OpenAIRoute(JsonRoute):
    """A route under ``/v1``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler with the native status 422 replaced by 400."""
        handle = super().get_route_handler()

        async def refusing_with_400(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise BadRequestError.like(invalid_request(error, self)) from error
            except InvalidRequestError as error:
                raise BadRequestError.like(error) from error

        return refusing_with_400
