"""API views: the service renders these classes and the client parses them, one module for each noun.

The classes hold data only. How a row becomes a view is the service's business (``service/*/schemas.py``), except
that `View.of` copies the attributes that have the same names. Request bodies are not here: the service checks them
strictly, and a client may send a newer one.

A client must be able to read the answers of a newer service. Therefore a view

- keeps the fields that it does not know (``extra="allow"``), so that ``trd … --json`` prints them, and
- takes a value that an enum does not know as a plain string: fields that hold enums are declared as `OpenEnum`.

The OpenAPI document does not mention either: it describes what this version of the service answers. Never build a
view with ``from_attributes``: together with ``extra="allow"`` it would copy every attribute of a row, also those that
no user may see.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError, ValidatorFunctionWrapHandler
from pydantic_core import CoreSchema, core_schema

Value = TypeVar("Value")
Item = TypeVar("Item")

MAX_PAGE = 100
"""Maximum number of objects in a page."""

_MISSING = object()


class View(BaseModel):
    """Base class of all views."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        use_attribute_docstrings=True,
        json_schema_extra=lambda schema: schema.pop("additionalProperties", None),
    )

    @classmethod
    def of(cls, row: object, **fields: Any) -> Self:
        """Build the view from `fields`, and for all other fields from the row's attributes of the same names."""
        same = {name: getattr(row, name, _MISSING) for name in cls.model_fields if name not in fields}
        return cls(**{name: value for name, value in same.items() if value is not _MISSING}, **fields)


class _KnownOrString:
    """Validates `known | str` as `known`, and takes a string that `known` refuses as it is.

    The field's JSON schema is that of `known`. A plain union would prefer the string, and would show it in the schema.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        known, _ = get_args(source)
        as_it_is = core_schema.plain_serializer_function_ser_schema(lambda value: value)
        return core_schema.no_info_wrap_validator_function(self._read, handler(known), serialization=as_it_is)

    @staticmethod
    def _read(value: Any, known: ValidatorFunctionWrapHandler) -> Any:
        try:
            return known(value)
        except ValidationError:
            if isinstance(value, str):
                return value
            raise


OpenEnum = Annotated[Value | str, _KnownOrString()]
"""A value of an enum or of a `Literal`, or a plain string if a newer service sends a value that this version lacks."""


class Page(View, Generic[Item]):
    """Part of a list. The next part begins ``after`` the last object of this one."""

    # A class such as Page[JobView] has no source, and pydantic would look for it in every loaded module: 20 ms a class.
    model_config = ConfigDict(use_attribute_docstrings=False)

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool


class ErrorDetail(View):
    """What went wrong."""

    message: str
    """Names the field, the value and the remedy."""
    type: str
    """The kind of error, one of a few: invalid_request_error, conflict_error, quota_error…"""
    param: str | None
    """The field or parameter at fault."""
    code: str
    """Stable: clients branch on it."""
    errors: list[dict[str, Any]] = Field(default_factory=list)
    """All faults, if a request has several."""


class Error(View):
    """The body of every response that is not a success."""

    error: ErrorDetail


class NoticeView(View):
    """Something that was found in the data, the model or the first round of a job."""

    code: str
    """Stable name of the finding, such as unread_columns."""
    message: str
    """What was found."""
    remedy: str
    """What to do about it."""
    count: int = 1
    """Number of rows, rollouts or parts of a model that it concerns."""
    example: str = ""
    """One of them, shortened."""
    tasks: list[str] | None = None
    """Tasks for which it holds; null for all."""
