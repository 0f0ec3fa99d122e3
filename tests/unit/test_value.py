"""value.py: frozen records."""

from __future__ import annotations

import pytest

from cni_py.value import Value


class Point(Value):
    x: int
    y: int = 0
    _note: str = "no field"


class Named(Point):
    name: str = ""

    @property
    def label(self) -> str:
        return f"{self.name} {self.x}/{self.y}"


class Other(Value):
    x: int
    y: int = 0


class Empty(Value):
    pass


def test_fields_are_the_annotations_in_order() -> None:
    assert Point._fields == ("x", "y")
    assert Named._fields == ("x", "y", "name")
    assert Empty._fields == ()
    assert Named(1, 2, "n").label == "n 1/2"
    assert Named(name="n", x=1).label == "n 1/0"


@pytest.mark.parametrize("make", [Point, lambda: Point(y=1), lambda: Point(1, 2, 3), lambda: Point(1, z=2), lambda: Empty(1)])  # type: ignore[call-arg]
def test_wrong_arguments_are_refused(make: object) -> None:
    with pytest.raises(TypeError):
        make()  # type: ignore[operator]


def test_argument_given_twice_is_refused() -> None:
    with pytest.raises(TypeError):
        Point(1, x=2)  # type: ignore[misc]


def test_equal_values_are_equal_and_hash_alike() -> None:
    assert Point(1) == Point(1, 0)
    assert hash(Point(1)) == hash(Point(1, 0))
    assert Point(1) != Point(2)
    assert Point(1) != Other(1)
    assert Point(1) != Named(1)
    assert Point(1) != (1, 0)
    assert {Point(1): "a"}[Point(1, 0)] == "a"
    assert Empty() == Empty()


def test_value_cannot_be_changed() -> None:
    point = Point(1)
    with pytest.raises(AttributeError, match="Point is frozen"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        point.z = 2  # type: ignore[attr-defined]
    assert point == Point(1)


def test_replace_makes_another() -> None:
    point = Named(1, 2, "n")
    assert point.replace(y=3) == Named(1, 3, "n")
    assert point == Named(1, 2, "n")
    with pytest.raises(TypeError):
        point.replace(z=1)


def test_repr_can_be_read() -> None:
    assert repr(Named(1, name="n")) == "Named(x=1, y=0, name='n')"
    assert eval(repr(Named(1, name="n"))) == Named(1, name="n")
