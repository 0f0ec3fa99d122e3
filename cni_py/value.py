"""Frozen records without the start-up cost of ``dataclasses``.

``dataclasses`` imports ``inspect`` and with it half the standard library: 9 ms of a call that takes
37 (docs/decisions/0002-imports.md). A :class:`Value` is written and type-checked like a
frozen dataclass; it has only the features that this project uses.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self, dataclass_transform
else:

    def dataclass_transform(**_: object):  # the type checker's marker; nothing at run time
        return lambda cls: cls


@dataclass_transform(frozen_default=True, eq_default=True)
class Value:
    """Record whose annotations are its fields, in order; class attributes are their defaults."""

    _fields: tuple[str, ...] = ()
    _defaults: dict[str, Any] = {}  # noqa: RUF012 — a class's own, written once

    def __init_subclass__(cls) -> None:
        cls._fields = (*cls._fields, *(n for n in cls.__annotations__ if n[0] != "_"))
        cls._defaults = {n: getattr(cls, n) for n in cls._fields if hasattr(cls, n)}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        own, fields, defaults = self.__dict__, self._fields, self._defaults
        own.update(zip(fields, args, strict=False))
        try:
            for name in fields[len(args) :]:  # in their order, by which values are compared
                own[name] = kwargs.pop(name) if name in kwargs else defaults[name]
        except KeyError as error:
            raise TypeError(f"{type(self).__name__} needs {error}") from None
        if kwargs or len(args) > len(fields):
            raise TypeError(f"{type(self).__name__} takes {fields}, not {args} {kwargs}")

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return type(self)(**{**self.__dict__, **changes})

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in self._fields)})"
