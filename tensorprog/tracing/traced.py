"""What no traced value can do, each refused with what to write instead.

A traced value has no coordinates: it stands for every input and every width at once. `__array_ufunc__ = None` and the
missing `__jax_array__` make NumPy and JAX arrays hand `+ - * / @` over to our operators, and refuse everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

from tensorprog.ir import ScalarRef, Sites, VectorType
from tensorprog.tracing.builder import Builder


class Traced:
    """What vectors, scalars and weights have in common: what they refuse."""

    __array_ufunc__ = None
    __hash__ = object.__hash__
    builder: Builder
    sites: Sites

    def describe(self) -> str:
        raise AssertionError("each kind of traced value describes itself")

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    def refuse(self, what: str, remedy: str) -> NoReturn:
        self.builder.fail(
            what, f"{self.describe()} has no value yet: a program is traced once, for every input and width", remedy
        )

    def __bool__(self) -> NoReturn:
        self.refuse(
            "if, while, and, or, not on a traced value",
            "write the choice into the function of a Nonlin, tp.nonlin(lambda z: jnp.where(z > 0, …), x)",
        )

    def __float__(self) -> NoReturn:
        self.refuse(
            "a Python number of a traced value",
            "write tp.nonlin(fn, x), of a scalar tp.scalar(fn, s), with a function of jax.numpy, or return the value",
        )

    __int__ = __complex__ = __index__ = __round__ = __float__

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self.refuse(
            "a NumPy function of a traced value",
            "write tp.nonlin(jnp.tanh, x) for elementwise functions, tp.scalar(fn, s) for functions of scalars; over "
            "sites there are tp.stack, tp.concat, tp.sum, tp.mean",
        )

    def _compare(self, _: object) -> NoReturn:
        self.refuse(
            "a comparison of a traced value", "compare inside the function of a Nonlin; `is` tells objects apart"
        )

    __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = _compare

    def _nonlinear(self, *_: object) -> NoReturn:
        self.builder.fail(
            f"a power, //, % or abs of {self.describe()}",
            "that is a nonlinearity",
            "write tp.nonlin(lambda z: z**2, x), of a scalar tp.scalar(lambda s: s**2, s)",
        )

    __pow__ = __rpow__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __divmod__ = __rdivmod__ = __abs__ = (
        _nonlinear
    )

    def __setitem__(self, index: object, value: object) -> NoReturn:
        self.builder.fail(
            "x[…] = …", "traced values do not change", "put the new vectors together with tp.stack or tp.concat"
        )

    def __len__(self) -> int:
        if not self.sites:
            self.refuse("len(…) of a value without sites", "len counts the first site axis")
        return self.sites[0]

    def __iter__(self) -> Iterator[Any]:
        if not self.sites:
            self.refuse("iteration over a value without sites", "only site axes can be iterated over")
        return (self[i] for i in range(self.sites[0]))

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("each kind of traced value indexes itself")


class AnyVector(Traced):
    """A traced vector as instructions see it: a type, and a position once it is written down."""

    type: VectorType

    def position(self) -> int:
        raise AssertionError("each kind of vector knows its instruction")


class AnyScalar(Traced):
    """A traced scalar as instructions see it: one operand."""

    def ref(self) -> ScalarRef:
        raise AssertionError("each kind of scalar knows its operand")
