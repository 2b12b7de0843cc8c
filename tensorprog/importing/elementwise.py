"""Elementwise equations: kept as trees until something reads them, powers of the width taken out in front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tensorprog.importing.context import Context
from tensorprog.importing.fused import SAME, frozen
from tensorprog.importing.parameters import Parameters
from tensorprog.importing.places import as_vector
from tensorprog.importing.values import Known, Op, Par, Scal, Value, Vec
from tensorprog.importing.writing import joined, split_alike
from tensorprog.tracing.values import scalars_of

ELEMENTWISE = {
    "tanh", "exp", "exp2", "log", "max", "min", "logistic", "erf", "erfc", "erf_inv", "integer_pow", "square", "sqrt",
    "rsqrt", "cbrt", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "atan2",
    "abs", "sign", "floor", "ceil", "round", "pow", "select_n", "gt", "lt", "ge", "le", "eq", "ne", "add", "add_any",
    "sub", "mul", "div", "rem", "neg", "clamp", "log1p", "expm1", "is_finite", "and", "or", "not", "xor", "lgamma",
    "digamma", "nextafter", *SAME,
}  # fmt: skip
_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "square": 2.0, "cbrt": 1 / 3, "neg": 1.0, "abs": 1.0, **dict.fromkeys(SAME, 1.0)}


def elementwise(
    context: Context, parameters: Parameters, fn: Any, name: str, params: dict[str, Any], values: Sequence[Value],
    shape: Sequence[int], label: str | None,
) -> Value:  # fmt: skip
    """An elementwise equation of values that are not all numbers."""
    early = _on_parameter(context, name, values) or _with_zero(context, name, values)
    if early is not None:
        return early
    kept = frozen({k: v for k, v in params.items() if k not in ("sharding", "out_sharding")})
    if kept is None:
        context.fail(f"{name} has parameters that cannot be compared", "write it with functions of jax.numpy")
    given = [as_vector(context, parameters, v) if isinstance(v, Par) else v for v in values]
    vectors = any(isinstance(v, Vec) for v in given)
    parts = [_operand(context, v, vectors) for v in given]
    args, orders = [a for a, _ in parts], [p for _, p in parts]
    order = _order(context, name, params, given, args, orders)
    cause = next((v.cause for v in given if isinstance(v, Vec | Scal) and v.cause and v.order), None)
    if name in ("mul", "div") and any(type(a) is float and a == 1.0 for a in args[1 if name == "div" else 0 :]):
        same = next(k for k in ((0, 1) if name == "mul" else (0,)) if isinstance(args[k], Vec | Scal))
        return replace(given[same], order=order)
    op = Op(fn, kept, args, name, label)
    if not vectors:
        rank = len(shape)
        sizes = [_sizes(a, rank) for a in args]
        whole = tuple(max(column) for column in zip(*sizes, strict=True)) if rank else ()
        return Scal(whole, None, op, order, cause)
    own = [a for a in args if isinstance(a, Vec)]
    split_alike(context, own)
    axes = joined(
        context, *(a.axes for a in own), *(_scalar_axes(context, a, own[0]) for a in args if isinstance(a, Scal))
    )
    return Vec(axes, None, op, order, cause, frozenset().union(*(v.origins for v in own)))


def _scalar_axes(context: Context, s: Scal, x: Vec) -> Any:
    """The sites that scalars add to a vector."""
    return tuple(axis if axis or size == 1 else (size,) for size, axis in zip(s.shape, x.axes, strict=True))


def _sizes(a: Any, rank: int) -> tuple[int, ...]:
    if isinstance(a, Scal):
        return a.shape
    return np.shape(a) if np.ndim(a) == rank else (1,) * rank


def _on_parameter(context: Context, name: str, values: Sequence[Value]) -> Value | None:
    """Multiples of a parameter are parameters, with a multiplier."""
    if name in SAME or name == "neg":
        par = values[0]
        return replace(par, coef=-par.coef if name == "neg" else par.coef) if isinstance(par, Par) else None
    if name not in ("mul", "div") or len(values) != 2:
        return None
    left, right = values
    if isinstance(left, Par) and isinstance(right, Known) and _is_number(right):
        found = context.number(right)
        if name == "div":
            return replace(left, coef=left.coef / found.c, order=left.order - found.p)
        return replace(left, coef=left.coef * found.c, order=left.order + found.p)
    if name == "mul" and isinstance(right, Par) and isinstance(left, Known) and _is_number(left):
        return _on_parameter(context, name, (right, left))
    return None


def _is_number(known: Known) -> bool:
    return all(np.size(a) and (np.ravel(a) == np.ravel(a)[0]).all() for a in known.arrays)


def _with_zero(context: Context, name: str, values: Sequence[Value]) -> Value | None:
    """x + 0 is x, and 0·x is 0, the states that recurrent nets start from; a choice that is known."""
    if name == "select_n" and isinstance(values[0], Known) and _is_number(values[0]):
        return values[1 + int(np.ravel(values[0].arrays[0])[0])]
    if len(values) != 2:
        return None
    left, right = values
    if name == "mul" and (context.is_zero(left) or context.is_zero(right)):
        return left if context.is_zero(left) else right
    if name == "div" and context.is_zero(left):
        return left
    if name in ("add", "add_any") and context.is_zero(left):
        return right
    if name in ("add", "add_any", "sub") and context.is_zero(right):
        return left
    return None


def _operand(context: Context, value: Any, beside_vectors: bool) -> tuple[Any, float]:
    """An operand without its power of the width, and that power."""
    if isinstance(value, Vec | Scal):
        return bare(value), value.order
    array, p = context.array(value)
    if array.size == 1:
        item = array.reshape(()).item()
        return (float(item) if isinstance(item, float) else item), p
    if not beside_vectors:
        return array, p
    kept = tuple(d for d in array.shape if d != 1)
    numbers = array.reshape(kept).astype(float) if array.dtype != bool else array.reshape(kept)
    return Scal(array.shape, scalars_of(context.builder, [numbers], "an array of numbers")[0]), p


def bare(value: Any) -> Any:
    """The value at order 0, the same object each time."""
    if not value.order:
        return value
    if not hasattr(value, "without_order"):
        value.without_order = replace(value, order=0.0)
    return value.without_order


def _order(
    context: Context, name: str, params: dict[str, Any], given: Sequence[Any], args: Sequence[Any],
    orders: Sequence[float],
) -> float:  # fmt: skip
    """The power of the width of a result; refused where the function is not homogeneous."""
    if not any(orders):
        return 0.0
    if name == "mul":
        return sum(orders)
    if name == "div":
        return orders[0] - orders[1]
    if name in _POWERS:
        return orders[0] * _POWERS[name]
    if name == "integer_pow":
        return orders[0] * params["y"]
    worst = max(range(len(orders)), key=lambda k: abs(orders[k]))
    if name in ("add", "add_any", "sub", "max", "min", "select_n", "clamp"):
        start = 1 if name == "select_n" else 0
        if start and orders[0]:
            return 0.0
        own = {p for p, a in zip(orders[start:], args[start:], strict=True) if not _nothing(a)}
        if len(own) == 1:
            return own.pop()
        big = given[worst]
        if isinstance(big, Vec | Scal):
            context.diverges(big, "beside what does not change, an operand of a sum")
        context.fail("numbers of different growth are added", "bring both to one power of the width")
    if name in ("gt", "lt", "ge", "le", "eq", "ne") and any(_nothing(a) for a in args):
        return 0.0
    big = given[worst]
    if isinstance(big, Vec | Scal):
        context.diverges(big, f"what enters {name}")
    context.fail(f"a number that changes with the width enters {name}", "use numbers that don't, or powers as factors")


def _nothing(a: Any) -> bool:
    """0, −∞ and ∞ are of every size."""
    return not isinstance(a, Vec | Scal) and bool(np.all((np.asarray(a) == 0) | np.isinf(np.asarray(a, float))))
