"""Jinja templates of models, rendered within bounds: a model's folder may hold a template that loops or explodes.

Owns the environment of chat templates, which is that of `apply_chat_template` of transformers, and a budget of work for
each rendering. Every loop, call, filter, operator and output pays for the size of what it handles before it runs, and a
template that has spent its budget, or makes a value that is too large, fails within about a second. The limits of the
child that renders previews would not do: the API's process and the engine render templates too, to find the tokens that
end a turn and to build prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn, cast

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SOURCE_CHARACTERS = 2**18
"""Most characters of a template; the longest of published models have about 30,000."""
MAX_VALUE = 2**22
"""Weight of one value, in characters, and the largest integer that a call may be given."""
ITEM_WEIGHT = 128
"""Characters that an item of a list counts for, nested ones included: Python takes about as long for both."""
MAX_WORK = 2**27
"""Characters that one rendering may handle, each operation counted: many passes over the longest prompt."""
CALL_WORK = 1024
"""Characters that an operation counts for besides its values."""


_TOO_LARGE = f"it makes a value of more than {MAX_VALUE} characters, or a list as large"


class TemplateBudgetError(TemplateError):
    """A template handles more than a chat needs."""


class _Budget:
    def __init__(self) -> None:
        self.left = MAX_WORK


_BUDGET: ContextVar[_Budget | None] = ContextVar("template_budget", default=None)


@contextmanager
def bounded_work() -> Iterator[None]:
    """Within the block, templates of a `BoundedEnvironment` share one budget."""
    token = _BUDGET.set(_Budget())
    try:
        yield
    finally:
        _BUDGET.reset(token)


def _spend(work: int) -> None:
    budget = _BUDGET.get()
    if budget is None:
        return  # while a template is compiled
    budget.left -= work + CALL_WORK
    if budget.left < 0:
        raise TemplateBudgetError("it does more work than a chat template needs; it may loop without an end")


def _weight(value: Any, room: int = MAX_VALUE) -> int:
    """Return the characters in a value, and what its items count for; raise if that is more than `room`."""
    if isinstance(value, str | bytes):
        weight = len(value)
    elif isinstance(value, int):
        weight = value.bit_length() // 8
    elif isinstance(value, Mapping | list | tuple | set | frozenset):
        weight = ITEM_WEIGHT * len(value)
        for item in (*value.keys(), *value.values()) if isinstance(value, Mapping) else value:
            weight += _weight(item, room - weight)
    else:
        weight = 8 * len(value) if isinstance(value, range) else 1
    if weight > room:
        raise TemplateBudgetError(_TOO_LARGE)
    return weight


_TOO_WIDE = "it formats a text to more than 99,999 characters"
_WIDE = re.compile(r"\d{6,}|\{[^{}]*\{")
"""A width of six digits in a format, or one that is itself formatted."""


def _check_growth(name: str, subject: Any, arguments: list[Any]) -> None:
    """Refuse the few operations whose result may be far larger than what they are given."""
    for argument in arguments:
        if isinstance(argument, int) and abs(argument) > MAX_VALUE:
            raise TemplateBudgetError(f"{name} is given the number {str(argument)[:20]}")
    texts = [argument for argument in arguments if isinstance(argument, str)]
    if name == "translate":
        raise TemplateBudgetError("it translates characters, which is not allowed here")
    if name in ("format", "format_map") and isinstance(subject, str) and _WIDE.search(subject):
        raise TemplateBudgetError(_TOO_WIDE)
    if name == "replace" and len(texts) >= 2 and isinstance(subject, str):
        num_places = subject.count(texts[0]) if texts[0] else len(subject) + 1
        _require_value(len(subject) + num_places * len(texts[1]))
    if name == "join":
        separator, items = (subject, arguments[0]) if isinstance(subject, str) else (texts[0] if texts else "", subject)
        if isinstance(items, Sized):
            _require_value(_weight(items) + len(items) * len(separator))
    if name == "expandtabs" and isinstance(subject, str):
        _require_value(len(subject) + subject.count("\t") * max([8, *(a for a in arguments if isinstance(a, int))]))
    if name == "indent" and isinstance(subject, str):
        widths = [a if isinstance(a, int) else len(a) for a in arguments if isinstance(a, int | str)]
        _require_value(len(subject) + (subject.count("\n") + 1) * max([4, *widths]))


def _require_value(weight: int) -> None:
    if weight > MAX_VALUE:
        raise TemplateBudgetError(_TOO_LARGE)


_SLOW = {"pprint", "striptags", "title", "urlize", "wordwrap"}
"""Filters that take much longer than a copy of their text."""


def _paid(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter or test that pays for its arguments and its result."""
    factor = 16 if name in _SLOW else 1
    num_passed = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context or the environment comes first

    @wraps(function)
    def paid(*arguments: Any, **named: Any) -> Any:
        values = [*arguments[num_passed:], *named.values()]
        _spend(factor * _weight(values))
        _check_growth(name, values[0] if values else None, values[1:])
        result = function(*arguments, **named)
        _spend(_weight(result))
        return result

    return paid


class _Bounds(Extension):
    """Accepts ``{% generation %}``, with which some templates mark the assistant's turns; it writes nothing."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line_number = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call block, as in transformers: what the block sets is not visible after it.
        return nodes.CallBlock(self.call_method("rendered"), [], [], body).set_lineno(line_number)

    def rendered(self, caller: Callable[[], str]) -> str:
        """Return what the block writes."""
        return caller()

    def tick(self) -> str:
        """Do nothing: the call is paid for."""
        return ""

    def passed(self, value: Any) -> Any:
        """Return the value: the call is paid for."""
        return value

    def joined(self, *parts: Any) -> str:
        """Return the parts as one text, as the operator ``~``."""
        return "".join(map(str, parts))


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The environment of chat templates, in which everything is paid for, see `bounded_work`."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Bounds, "jinja2.ext.loopcontrols"],
            finalize=_finalized,
            optimized=False,  # constants would be computed, without a budget, while a template is compiled
        )
        self.filters["tojson"] = _to_json
        self.filters = {name: _paid(name, function) for name, function in self.filters.items()}
        self.tests = {name: _paid(name, cast(Callable[..., Any], function)) for name, function in self.tests.items()}
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        del self.globals["lipsum"]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Parse a template, and have its loops, assignments and concatenations pay."""
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise TemplateBudgetError(f"it has more than {MAX_SOURCE_CHARACTERS} characters")
        template = super()._parse(source, name, filename)
        bounds = self.extensions[_Bounds.identifier]
        for loop in list(template.find_all(nodes.For)):
            loop.iter = _paying(loop.iter, bounds)
            loop.body.insert(0, nodes.ExprStmt(bounds.call_method("tick", lineno=loop.lineno)))
        for assignment in list(template.find_all(nodes.Assign)):
            assignment.node = _paying(assignment.node, bounds)
        for comparison in list(template.find_all(nodes.Compare)):
            comparison.expr = _paying(comparison.expr, bounds)
            for operand in comparison.ops:
                operand.expr = _paying(operand.expr, bounds)
        _replace_concatenations(template, bounds)
        return template

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function of the template's, or a method of a value."""
        values = [*args, *kwargs.values()]
        subject = getattr(obj, "__self__", None)
        is_method = isinstance(subject, str | bytes | list | dict | tuple)
        _spend(_weight(values) + (_weight(subject) if is_method else 0))
        _check_growth(getattr(obj, "__name__", ""), subject if is_method else None, values)
        result = super().call(context, obj, *args, **kwargs)
        _spend(_weight(result))
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the sandbox's version of a text's format method."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and _WIDE.search(str(value.__self__)):
            raise TemplateBudgetError(_TOO_WIDE)
        return wrapped

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute ``left operator right``."""
        _spend(_weight(left) + _weight(right))
        if operator == "*":
            texts = [value for value in (left, right) if isinstance(value, str | list | tuple)]
            times = [value for value in (left, right) if isinstance(value, int)]
            if texts and times:
                _require_value(_weight(texts[0]) * max(times[0], 0))
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            _require_value(left.bit_length() * abs(right))
        if operator == "%" and isinstance(left, str):
            _check_growth("format", left, list(right) if isinstance(right, tuple) else [right])
            if "*" in left:
                raise TemplateBudgetError("it formats a text to a width that it computes")
        result = super().call_binop(context, operator, left, right)
        _spend(_weight(result))
        return result

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return ``obj[argument]``; slices are copies."""
        if isinstance(argument, slice):
            _spend(_weight(obj))
        return super().getitem(obj, argument)


def _paying(node: nodes.Node, bounds: Extension) -> nodes.Call:
    """Return an expression of the same value that is paid for."""
    return bounds.call_method("passed", [cast(nodes.Expr, node)], lineno=node.lineno)


def _replace_concatenations(node: nodes.Node, bounds: Extension) -> None:
    for field, value in node.iter_fields():
        children = value if isinstance(value, list) else [value]
        for position, child in enumerate(children):
            if not isinstance(child, nodes.Node):
                continue
            _replace_concatenations(child, bounds)
            if isinstance(child, nodes.Concat):
                call = bounds.call_method("joined", child.nodes, lineno=child.lineno)
                if isinstance(value, list):
                    value[position] = call
                else:
                    setattr(node, field, call)


def _finalized(value: Any) -> Any:
    """Pay for what is written, whose text may be larger than itself."""
    _spend(_weight(value))
    return value


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML.
    if isinstance(indent, int) and indent > 99:
        raise TemplateBudgetError(f"tojson is given indent = {indent}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
