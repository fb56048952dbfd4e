"""Configurations as the files of other projects hold them: one rule for what is read, written and refused.

A key of a `config.json` is one of three things: a field of our dataclass; a key that the format knows but
that we support at some values only (its *fixed* values; the first is the one written); or bookkeeping, which
says nothing about the function that the net computes (a leading underscore, or a named list). Everything else
is refused with the nearest known name: an ignored key is a wrong picture that nobody can explain.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from ..errors import UsageError, unknown

T = TypeVar("T")
Fixed = Mapping[str, tuple[Any, ...]]


def parse(
    cls: type[T],
    raw: Mapping[str, Any],
    *,
    what: str,
    fixed: Fixed,
    ignored: Collection[str] = (),
    derived: Mapping[str, Any] = types.MappingProxyType({}),
) -> T:
    """The dataclass `cls` with the values of a config.json `raw`; absent keys keep the defaults of `cls`.

    `derived` are fields that no key of the format holds. Raises `UsageError` that names `what` for an unknown
    key, a value of the wrong type, and a value of a `fixed` key that is not among those supported.
    """
    hints = {key: hint for key, hint in typing.get_type_hints(cls).items() if key not in derived}
    values = dict(derived)
    for key, given in raw.items():
        value = _frozen(given)
        if key in hints:
            if not _conforms(value, hints[key]):
                raise UsageError(f"{what}: '{key}' is {given!r}, expected {_spell(hints[key])}")
            values[key] = value
        elif key in fixed:
            if value not in fixed[key]:
                known = " or ".join(repr(v) for v in fixed[key])
                raise UsageError(f"{what}: '{key}' = {given!r} is not supported, only {known}")
        elif not key.startswith("_") and key not in ignored:
            raise unknown(f"key in {what}", key, [*hints, *fixed])
    return cls(**values)


def serialise(config: Any, *, fixed: Fixed) -> dict[str, Any]:
    """The reverse of `parse`: all fields and all fixed keys, tuples as lists, ready for JSON."""
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    values |= {key: known[0] for key, known in fixed.items()}
    return {key: _thawed(values[key]) for key in sorted(values)}


def per_level(value: Any, levels: int, *, what: str) -> tuple[Any, ...]:
    """A value per resolution: a scalar is repeated, a tuple must have `levels` entries."""
    if not isinstance(value, tuple):
        return (value,) * levels
    if len(value) != levels:
        raise UsageError(f"{what} has {len(value)} entries for {levels} levels; give one number or {levels}")
    return value


def check_divisible(what: str, value: int, by_what: str, by: int) -> None:
    """Raises `UsageError` unless `by` is positive and divides `value`, which is positive too."""
    if value < 1 or by < 1 or value % by:
        raise UsageError(f"{what} = {value} cannot be divided into {by_what} = {by} equal parts")


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value


def _thawed(value: Any) -> Any:
    return [_thawed(v) for v in value] if isinstance(value, tuple) else value


def _conforms(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_conforms(value, h) for h in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:  # tuple[X, ...] alone is used
        return isinstance(value, tuple) and all(_conforms(v, typing.get_args(hint)[0]) for v in value)
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, hint)


def _spell(hint: Any) -> str:
    return (
        getattr(hint, "__name__", "") if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    )
