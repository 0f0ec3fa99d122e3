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

    def __init_subclass__(cls) -> None:
        cls._fields = (*cls._fields, *(n for n in cls.__annotations__ if n[0] != "_"))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        own = self.__dict__
        own.update(zip(self._fields, args, strict=False))
        own.update(kwargs)
        if len(own) < len(args) + len(kwargs) or any(name not in self._fields for name in own):
            raise TypeError(f"{type(self).__name__} takes {self._fields}, not {args} {kwargs}")
        missing = [n for n in self._fields if n not in own and not hasattr(type(self), n)]
        if missing:
            raise TypeError(f"{type(self).__name__} needs {missing}")

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return type(self)(**{**{n: getattr(self, n) for n in self._fields}, **changes})

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(getattr(self, n) == getattr(other, n) for n in self._fields)

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, n) for n in self._fields))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in self._fields)})"
