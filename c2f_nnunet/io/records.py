"""Frozen dataclasses ↔ JSON files. Pydantic checks a file at the boundary; inside there are attributes only.

A record type is a frozen dataclass with `__pydantic_config__`, set by `@record`: an unknown or missing key, a value of the
wrong type, or a number that is NaN or infinite is an error that names the file and every offending key at once.
"""
from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from typing_extensions import dataclass_transform  # in typing only from Python 3.11 on; pydantic brings this one

from ..errors import RecordError
from . import durable

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def record(cls: type[T]) -> type[T]:
    """A frozen dataclass that can be read from JSON, with unknown keys and non-finite numbers refused."""
    cls.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}
    return dataclass(frozen=True)(cls)


@cache
def _adapter(cls: type) -> TypeAdapter:
    return TypeAdapter(cls)


def from_json(cls: type[T], value, source: str | Path) -> T:
    """A record from parsed JSON; RecordError names the source and all offending keys."""
    try:
        return _adapter(cls).validate_python(value)
    except ValidationError as e:
        wrong = "; ".join(f"{'.'.join(map(str, x['loc'])) or 'the file'}: {x['msg']} (got {str(x['input'])[:60]})" for x in e.errors()[:8])
        raise RecordError(f"{source}: not a valid {cls.__name__}: {wrong}; mend these entries or make the file again") from e


def read_json(path: Path):
    """Parsed JSON; RecordError where the file is missing or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as e:
        raise RecordError(f"{path}: cannot be read as JSON ({e}); restore or make it again") from e


def read(cls: type[T], path: Path) -> T:
    """A record from a JSON file."""
    return from_json(cls, read_json(path), path)


def plain(value):
    """JSON-ready form of a record: tuples as lists, non-finite numbers as null (JSON has none)."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "__dataclass_fields__"):
        return plain(asdict(value))
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_text(value) -> str:
    """Readable JSON: objects one key a line, short lists of numbers on one line."""
    return _layout(plain(value), 0) + "\n"


def _layout(value, depth: int) -> str:
    pad, inner = " " * depth, " " * (depth + 1)
    if isinstance(value, dict) and value:
        entries = (f"{inner}{json.dumps(k, ensure_ascii=False)}: {_layout(v, depth + 1)}" for k, v in value.items())
        return "{\n" + ",\n".join(entries) + f"\n{pad}}}"
    if isinstance(value, list) and any(isinstance(v, dict) for v in value):
        return "[\n" + ",\n".join(inner + _layout(v, depth + 1) for v in value) + f"\n{pad}]"
    return json.dumps(value, ensure_ascii=False)


def write(path: Path, value) -> None:
    """Write a record (or plain JSON value) durably."""
    durable.write_text(path, to_text(value))
