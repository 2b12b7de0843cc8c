"""Functions put together from a jaxpr's equations: hashable, equal for equal equations, of any floating dtype."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

KNOWN: dict[str, Callable[..., Any]] = {
    "tanh": jnp.tanh, "exp": jnp.exp, "log": jnp.log, "logistic": jax.nn.sigmoid, "erf": jax.scipy.special.erf,
    "erfc": jax.scipy.special.erfc, "sin": jnp.sin, "cos": jnp.cos, "abs": jnp.abs, "sign": jnp.sign,
    "sqrt": jnp.sqrt, "rsqrt": jax.lax.rsqrt, "square": jnp.square, "log1p": jnp.log1p, "expm1": jnp.expm1,
    "mul": jnp.multiply,
}  # fmt: skip
"""Functions of jax.numpy and jax.nn that are one primitive: what a listing prints."""

SAME = {"convert_element_type", "copy", "copy_p", "stop_gradient", "reduce_precision", "optimization_barrier"}
"""Equations that return their operand, where all that is computed with are floating numbers."""


@dataclass(frozen=True)
class Constant:
    """An array of numbers that can be hashed and compared."""

    data: bytes
    dtype: str
    shape: tuple[int, ...]

    @staticmethod
    def of(value: Any) -> Constant:
        array = np.asarray(value)
        return Constant(array.tobytes(), array.dtype.str, array.shape)

    @property
    def array(self) -> np.ndarray:
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Argument:
    """One of the function's arguments, in another shape where one is given."""

    index: int
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Step:
    """One equation: a primitive with its parameters, or a function, of operands before it."""

    fn: Any
    params: tuple[tuple[str, Hashable], ...]
    operands: tuple[Step | Argument | Constant, ...]

    @property
    def primitive(self) -> str:
        return getattr(self.fn, "name", "")


Node = Step | Argument | Constant


@dataclass(frozen=True)
class Fused:
    """The function of coordinates, or of whole arrays of scalars, that a tree of equations computes."""

    root: Node
    shape: tuple[int, ...] | None = None  # of the result, where whole arrays are computed with
    name: str = field(default="lambda", compare=False)

    def __call__(self, *arguments: Any) -> Any:
        dtype = jnp.result_type(*(a for a in arguments if jnp.issubdtype(jnp.result_type(a), jnp.floating)), float)
        given = [jnp.asarray(a) for a in arguments]
        dtype = next((a.dtype for a in given if jnp.issubdtype(a.dtype, jnp.floating)), dtype)
        done: dict[int, Any] = {}

        def value(node: Node) -> Any:
            if id(node) not in done:
                done[id(node)] = self.valued(node, given, dtype, value)
            return done[id(node)]

        result = value(self.root)
        return result if self.shape is None else jnp.reshape(result, self.shape)

    @staticmethod
    def valued(node: Node, given: Sequence[Any], dtype: Any, value: Callable[[Node], Any]) -> Any:
        match node:
            case Argument(index, shape):
                return given[index] if shape is None else jnp.reshape(given[index], shape)
            case Constant():
                array = node.array
                return jnp.asarray(array, dtype if array.dtype.kind == "f" else None)
            case Step():
                own = [value(operand) for operand in node.operands]
                if any(jnp.issubdtype(a.dtype, jnp.floating) for a in own):
                    own = [a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.integer) else a for a in own]
                return bound(node, own, dtype)


def bound(step: Step, own: Sequence[Any], dtype: Any) -> Any:
    """The step on values, whatever precision it was traced in."""
    name = step.primitive
    params: dict[str, Any] = dict(step.params)
    if name == "convert_element_type":
        kind = jnp.dtype(params["new_dtype"])
        return own[0].astype(dtype if jnp.issubdtype(kind, jnp.floating) else kind)
    if name in SAME and name != "stop_gradient":
        return own[0]
    if not name:
        return step.fn(*own, **params)
    for key in ("preferred_element_type", "out_dtype", "dtype"):
        if key in params and params[key] is not None and jnp.issubdtype(jnp.dtype(params[key]), jnp.floating):
            params[key] = jnp.dtype(dtype)
    found = step.fn.bind(*own, **params)
    return found[0] if step.fn.multiple_results else found


def frozen(params: dict[str, Any]) -> tuple[tuple[str, Hashable], ...] | None:
    """An equation's parameters, if they can be hashed and compared by what they are."""
    found = tuple(sorted(params.items()))
    try:
        hash(found)
    except TypeError:
        return None
    return found


@dataclass(frozen=True)
class Ruled:
    """A function with a derivative rule of its own: its value, and its slope in each argument."""

    value: Fused
    slopes: tuple[Fused, ...]

    def __call__(self, *arguments: Any) -> Any:
        fn = jax.custom_jvp(self.value)

        @fn.defjvp
        def rule(primals: Any, tangents: Any) -> Any:
            change = sum(s(*primals) * t for s, t in zip(self.slopes, tangents, strict=True))
            return self.value(*primals), change

        return fn(*arguments)
