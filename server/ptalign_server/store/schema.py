"""The tables. No record text stands here in clear: requests are sealed, the rest is counts."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

operations = Table(
    "operations",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("identity", String(128), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("request", LargeBinary, nullable=False),
    Column("metadata", LargeBinary, nullable=False),
    Column("error", LargeBinary, nullable=False),
    Column("resource", String(80), nullable=False),
    Column("created", Float, nullable=False),
    Column("started", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Column("ended", Float, nullable=False),
    Column("mac", String(64), nullable=False),
    Index("operations_by_state", "state"),
    Index("operations_by_tenant", "tenant", "id"),
)

events = Table(
    "events",
    metadata,
    Column("operation", String(40), primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("time", Float, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("mac", String(64), nullable=False),
)

request_ids = Table(
    "request_ids",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("request_id", String(36), primary_key=True),
    Column("method", String(64), nullable=False),
    Column("fields", Text, nullable=False),
    Column("answer", String(80), nullable=False),
    Column("created", Float, nullable=False),
    Index("request_ids_by_time", "created"),
)

resources = Table(
    "resources",
    metadata,
    Column("name", String(80), primary_key=True),
    Column("collection", String(32), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("model", String(128), nullable=False),
    Column("policy", String(128), nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("adapter", String(80), nullable=False),
    Column("partial", Boolean, nullable=False),
    Column("purged", Boolean, nullable=False),
    Column("content", String(80), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("created", Float, nullable=False),
    Column("mac", String(64), nullable=False),
    Index("resources_by_kind", "tenant", "collection", "name"),
    Index("resources_by_verdict", "tenant", "collection", "verdict", "model", "policy"),
)

set_keys = Table(
    "set_keys",
    metadata,
    Column("set_id", String(64), primary_key=True),
    Column("wrapped", LargeBinary, nullable=False),
)

holds = Table(
    "holds",
    metadata,
    Column("name", Text, primary_key=True),
)

withdrawals = Table(
    "withdrawals",
    metadata,
    Column("name", String(80), primary_key=True),
)

audit = Table(
    "audit",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("time", Float, nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("identity", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("target", String(128), nullable=False),
    Column("detail", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)
