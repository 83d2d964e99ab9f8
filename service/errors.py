"""All errors of the API as one tree, and the one shape in which a client sees them.

ApiError                        status, stable code, message, the parameter at fault
├── InvalidRequestError         422  a value that cannot be accepted
│   └── BadRequestError         400  the same under /v1
├── AuthenticationError         401  no key, or an unknown one
├── PermissionDeniedError       403  a key without the scope
├── NotFoundError               404  no such object, or another owner's
├── RequestTimeoutError         408  the client stopped sending
├── ConflictError               409  not in the object's state
├── InFlightError               409  the same request is in progress
├── PayloadTooLargeError        413
├── MediaTypeError              415
├── RangeError                  416
├── QuotaError                  429  the owner's quota is used up
├── RateLimitError              429  too many requests with the key
└── UnavailableError            503

The body is always ``{"error": {"message", "type", "param", "code"}}``, and has ``errors`` too if several parameters
are invalid. Endpoints declare their errors with `raises`; the OpenAPI document follows from that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from contract.views import Error

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {"4XX": {"model": Error}, "5XX": {"model": Error}}
"""What the OpenAPI document says about every route's errors; each part's router has it."""
NO_RETRY = {"x-should-retry": "false"}
"""The `openai` client retries every 409 and 429 unless this header says no."""


class ApiError(HTTPException):
    """Base class. An `HTTPException`, so that no layer of the framework wraps it in another."""

    status: ClassVar[int]
    type: ClassVar[str]
    default_code: ClassVar[str]

    def __init_subclass__(cls, *, status: int, type: str, code: str) -> None:
        cls.status, cls.type, cls.default_code = status, type, code

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(status_code=self.status, detail=message, headers=dict(headers or {}))
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.errors = errors


class InvalidRequestError(ApiError, status=422, type="invalid_request_error", code="invalid_value"):
    """A value is invalid: the body names the field, the value and the remedy, and all faults in errors."""


class BadRequestError(InvalidRequestError, status=400, type="invalid_request_error", code="invalid_value"):
    """A value is invalid: the body names the field, the value and the remedy, and all faults in errors."""

    @classmethod
    def like(cls, error: InvalidRequestError) -> Self:
        """Return the same error with status 400."""
        return cls(error.message, code=error.code, param=error.param, headers=error.headers, errors=error.errors)


class AuthenticationError(ApiError, status=401, type="authentication_error", code="invalid_api_key"):
    """There is no key, or it is unknown or revoked."""

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message, code=code, headers={"www-authenticate": "Bearer"})


class PermissionDeniedError(ApiError, status=403, type="permission_error", code="insufficient_scope"):
    """The key lacks the scope."""


class NotFoundError(ApiError, status=404, type="invalid_request_error", code="not_found"):
    """There is no such object, or it is another owner's."""


class RequestTimeoutError(ApiError, status=408, type="invalid_request_error", code="request_timeout"):
    """The client stopped sending before the body was complete."""

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"connection": "close"})


class ConflictError(ApiError, status=409, type="conflict_error", code="conflict"):
    """The object's state does not allow this; sending the request again does not help."""

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message, code=code, param=param, headers=NO_RETRY)


class InFlightError(ApiError, status=409, type="conflict_error", code="idempotency_key_in_flight"):
    """A request with the same Idempotency-Key is in progress: send this one again in a moment."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"Idempotency-Key = {key}: a request with this key is in progress; send it again in a second",
            param="Idempotency-Key",
            headers={"x-should-retry": "true", "retry-after": "1"},
        )


class PayloadTooLargeError(ApiError, status=413, type="invalid_request_error", code="payload_too_large"):
    """There are more bytes, rows or headers than the operator allows."""


class MediaTypeError(ApiError, status=415, type="invalid_request_error", code="unsupported_media_type"):
    """The call does not accept this kind of body."""


class RangeError(ApiError, status=416, type="invalid_request_error", code="range_not_satisfiable"):
    """The file does not have this byte range."""


class QuotaError(ApiError, status=429, type="quota_error", code="quota_exceeded"):
    """The owner's quota is used up."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param, headers=NO_RETRY)


class RateLimitError(ApiError, status=429, type="rate_limit_error", code="rate_limit_exceeded"):
    """The key sends too many requests: retry-after says how long to wait."""


class UnavailableError(ApiError, status=503, type="server_error", code="unavailable"):
    """Something that the service needs does not answer."""


def refusal(field: str, value: object, reason: str, remedy: str, code: str | None = None) -> InvalidRequestError:
    """Return the error for the value of a field."""
    return InvalidRequestError(f"{field} = {value}: {reason}; {remedy}", code=code, param=field)


_FRAMEWORK_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}
_FRAMEWORK_MESSAGES = {
    "not_found": "there is no such path; GET /openapi.json lists all paths",
    "method_not_allowed": "this path does not accept the method; GET /openapi.json lists the methods",
}


def error_response(error: HTTPException) -> JSONResponse:
    """Return the answer for one of our errors, or one of the framework's (no such path, no such method)."""
    return JSONResponse(error_body(error), status_code=error.status_code, headers=error.headers)


def error_body(error: HTTPException) -> dict[str, Any]:
    """Return the body of the answer for an error."""
    if isinstance(error, ApiError):
        body = error_content(error.message, type=error.type, code=error.code, param=error.param)
        if error.errors is not None:
            body["error"]["errors"] = list(error.errors)
        return body
    code = _FRAMEWORK_CODES.get(error.status_code, "bad_request")
    return error_content(_FRAMEWORK_MESSAGES.get(code, str(error.detail)), type="invalid_request_error", code=code)


def error_content(message: str, *, type: str, code: str, param: str | None = None) -> dict[str, Any]:
    """Return the body of an answer that is not a success."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def raises(*errors: type[ApiError]) -> Callable[[Endpoint], Endpoint]:
    """Declare the errors of an endpoint, beyond those of authentication and validation, for the OpenAPI document."""

    def declare(endpoint: Endpoint) -> Endpoint:
        endpoint.raises = errors  # type: ignore[attr-defined]
        return endpoint

    return declare


def raised_by(endpoint: Callable[..., Any]) -> tuple[type[ApiError], ...]:
    """Return what the endpoint declares with `raises`."""
    return getattr(endpoint, "raises", ())
