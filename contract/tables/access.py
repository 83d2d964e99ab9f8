"""Tables of those who use the service: keys, sessions, and what was done with them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Index,
    String,
    Text,
)
from sqlalchemy.orm import Mapped, mapped_column

from contract.tables.base import Base


class ApiKey(Base):
    """A bearer key. The key itself is never stored, only its HMAC."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(String(100), index=True)
    name: Mapped[str] = mapped_column(String(200))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]


class AuditEntry(Base):
    """An action in the audit log. Entries are only added."""

    __tablename__ = "audit_log"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    at: Mapped[datetime]
    owner: Mapped[str] = mapped_column(String(100))  # of the key
    key_id: Mapped[str] = mapped_column(String(200))
    action: Mapped[str] = mapped_column(String(40))  # contract.views.audit.AuditAction
    target: Mapped[str] = mapped_column(String(500))
    request_id: Mapped[str] = mapped_column(String(128))
    detail: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))

    __table_args__ = (Index(None, "owner", "id"), Index(None, "action", "id"), Index(None, "target", "id"))


class BrowserSession(Base):
    """A sign-in to the dashboard, or a link that signs in once. The token itself is never stored, only its HMAC."""

    __tablename__ = "browser_sessions"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_digest: Mapped[str] = mapped_column(String(64))  # of the API key: the session ends when the key is revoked
    is_link: Mapped[bool]
    expires_at: Mapped[datetime] = mapped_column(index=True)


class OfferedPlace(Base):
    """A page of the dashboard that one of the owner's open tabs is to open. The tab that takes it deletes the row."""

    __tablename__ = "offered_places"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(String(100), index=True)
    path: Mapped[str] = mapped_column(Text)  # built by the service
    expires_at: Mapped[datetime]
