"""Renders templates into pages: what every page shares, its headers, and how values are written."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse

from service.errors import error_body

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "cache-control": "no-store",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def page(request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a template as a page. It finds the caller, if there is one, and the session's CSRF token."""
    state = request.state
    given = {"caller": getattr(state, "caller", None), "csrf_token": getattr(state, "csrf_token", "")}
    content = TEMPLATES.get_template(template).render(path=request.url.path, **given, **values)
    return HTMLResponse(content, status, HEADERS)


def fragment(template: str, macro: str, *arguments: Any) -> str:
    """Return what a template's macro renders: a part of a page, for a script that replaces that part."""
    return str(getattr(TEMPLATES.get_template(template).module, macro)(*arguments))


def error_page(request: Request, error: HTTPException) -> HTMLResponse:
    """Return an error as a page."""
    response = page(request, "error.html", status=error.status_code, error=error_body(error)["error"])
    response.headers.update({name: value for name, value in (error.headers or {}).items() if name != "content-type"})
    return response


def time(at: datetime | None) -> Markup:
    """Write a point in time; a script shows how long ago it was."""
    if at is None:
        return Markup("–")
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(), f"{at:%Y-%m-%d %H:%M} UTC")


def duration(seconds: float | None) -> str:
    """Write a duration in its two largest units."""
    if seconds is None:
        return "–"
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def size(num_bytes: float) -> str:
    """Write a number of bytes."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def figure(value: Any, digits: int = 3) -> str:
    """Write a number with so many significant digits; a dash if there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e6):
        return f"{int(value):,}"
    return f"{value:.{digits}g}"


def percent(share: float | None) -> str:
    """Write a share of 1 in percent."""
    return "–" if share is None else f"{100 * share:.1f} %"


def pretty(document: Any) -> str:
    """Write a document as indented JSON."""
    return json.dumps(document, indent=2, ensure_ascii=False)


def points(values: list[float], width: float = 96, height: float = 24) -> str:
    """Return the points of a sparkline in a box of this size, for an SVG polyline."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    step = width / max(1, len(values) - 1)
    return " ".join(f"{i * step:.1f},{1 + (height - 2) * (high - v) / span:.1f}" for i, v in enumerate(values))


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_WRITERS = (time, duration, size, figure, percent, points, pretty)
TEMPLATES.filters.update({write.__name__: write for write in _WRITERS})
