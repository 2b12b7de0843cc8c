"""A function run again, equation by equation, and cut at what its weights are multiplied into.

`run` evaluates a jaxpr as JAX would, and follows each parameter through what is linear and simple (`views`). Where a
view meets an activation in a product (`uses`), the result is *cut*: y + ε with ε = 0, so that the derivative in ε is
∂f/∂y, and the other factor is kept. What else may happen to a view is noted, and differentiated in the plain way:

- `DIRECT`: it is added to, multiplied with or put beside activations. Its derivative is that activation's, no larger.
- `WHOLE`: any other function of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tensorprog.empirical import uses
from tensorprog.empirical.uses import Left, Use
from tensorprog.empirical.views import View
from tensorprog.jaxprs import ClosedJaxpr, Jaxpr, Literal, evaluated

DIRECT, WHOLE = 1, 2

CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2", "xla_call"}  # bodies without rules
ELEMENTWISE = {"add", "sub", "mul", "div", "max", "min", "pow", "atan2", "select_n", "add_any", "concatenate", "clamp"}
OF_UNIFORM = {"add", "sub", "mul", "div", "neg", "sqrt", "rsqrt", "exp", "convert_element_type", "broadcast_in_dim"}
OF_UNIFORM |= {"reshape", "squeeze", "transpose", "copy", "pow", "integer_pow", "max"}


@dataclass(frozen=True, eq=False)
class Value:
    """An array of the run: what it is of parameters besides a constant; whether it depends on the example; whether all
    its entries are one number."""

    array: Any
    views: tuple[View, ...] = ()
    active: bool = False
    uniform: bool = False

    @property
    def one(self) -> Array:
        return jnp.asarray(self.array).reshape(-1)[0]


@dataclass(frozen=True, eq=False)
class Cut:
    """One place where the run was cut: the shape of y, and the uses that meet there."""

    shape: tuple[int, ...]
    dtype: Any
    uses: tuple[Use, ...]


@dataclass(eq=False)
class Tape:
    """The cuts in order of execution: the ε to add (None: zeros, when cuts are only looked for), the factors kept, and
    what is known of parameters that are not cut (shared by the tapes of loops)."""

    offsets: Sequence[Array] | None
    notes: dict[int, int] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)
    lefts: list[tuple[Left, ...]] = field(default_factory=list)

    def offset(self, ahead: int, shape: Sequence[int], dtype: Any) -> Array:
        """The ε of the cut that is made `ahead` cuts from now."""
        return jnp.zeros(shape, dtype) if self.offsets is None else self.offsets[len(self.cuts) + ahead]

    def record(self, cut: Cut, lefts: tuple[Left, ...]) -> None:
        self.cuts.append(cut)
        self.lefts.append(lefts)

    def note(self, values: Sequence[Value], what: int) -> None:
        for view in (view for value in values for view in value.views):
            self.notes[view.parameter] = max(what, self.notes.get(view.parameter, 0))


def run(closed: ClosedJaxpr, values: Sequence[Value], tape: Tape) -> list[Value]:
    """The outputs of a jaxpr for these inputs."""
    jaxpr = closed.jaxpr
    known: dict[Any, Value] = {var: Value(const) for var, const in zip(jaxpr.constvars, closed.consts, strict=True)}
    known |= dict(zip(jaxpr.invars, values, strict=True))

    def read(atom: Any) -> Value:
        return Value(atom.val, uniform=jnp.ndim(atom.val) == 0) if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        found = _equation(jaxpr, equation, [read(atom) for atom in equation.invars], tape)
        known |= dict(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(jaxpr: Jaxpr, equation: Any, values: list[Value], tape: Tape) -> list[Value]:
    name = equation.primitive.name
    if not any(value.views for value in values) or name == "stop_gradient":
        return _plain(jaxpr, equation, values)
    if name in CALLS:
        body = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        return run(body if isinstance(body, ClosedJaxpr) else ClosedJaxpr(body, ()), values, tape)
    if name == "scan":
        return _scan(equation, values, tape)
    if name == "cond":
        return _cond(equation, values, tape)
    (result, *more) = found = _plain(jaxpr, equation, values)
    if not any(jnp.issubdtype(jnp.asarray(value.array).dtype, jnp.inexact) for value in found):
        return found  # comparisons, integers: no derivative
    if not more:
        if name in PRODUCTS:
            return [_product(equation, values, result, tape)]
        if (views := _linear(equation, values, tape)) is not None:
            return [replace(result, views=views)]
    alike = name in ELEMENTWISE and any(value.active and _is_floating(value) for value in values)
    tape.note(values, DIRECT if alike else WHOLE)
    return found


def _plain(jaxpr: Jaxpr, equation: Any, values: Sequence[Value]) -> list[Value]:
    """The equation as it stands."""
    active = any(value.active for value in values)
    uniform = equation.primitive.name in OF_UNIFORM and all(value.uniform for value in values)
    arrays = evaluated(jaxpr, equation, [value.array for value in values])
    return [Value(array, active=active, uniform=uniform or jnp.size(array) == 1) for array in arrays]


def _is_floating(value: Value) -> bool:
    return jnp.issubdtype(jnp.asarray(value.array).dtype, jnp.floating)


def _linear(equation: Any, values: Sequence[Value], tape: Tape) -> tuple[View, ...] | None:
    """The views that the equation's result is made of, or None where it is more than a view."""
    name, params = equation.primitive.name, equation.params
    shape = equation.outvars[0].aval.shape
    if name in ("add", "sub", "add_any"):
        left, right = values
        if left.active or right.active:
            return None
        minus = [view.scaled(jnp.float32(-1)) for view in right.views] if name == "sub" else right.views
        return tuple(_filling(view, shape) for view in (*left.views, *minus))
    if name in ("mul", "div"):
        left, right = values
        if name == "mul" and right.views and (left.uniform or not left.views):
            left, right = right, left
        if not right.uniform or not left.views or (right.active and left.uniform):
            return None
        tape.note([right], WHOLE)  # a factor that is learnt
        factor = right.one if name == "mul" else 1 / right.one
        return tuple(_filling(view.scaled(factor), shape) for view in left.views)
    step = _STEPS.get(name)
    if step is None or not jnp.issubdtype(params.get("new_dtype", jnp.float32), jnp.floating):
        return None  # to complex numbers it is no real view
    views = [step(view, params) for view in values[0].views]
    return None if None in views else tuple(view for view in views if view is not None)


def _filling(view: View, shape: Sequence[int]) -> View:
    """A number beside an array, the one case where operands of a sum or product differ in shape, is repeated."""
    return view.broadcast(shape, ()) if shape and not view.shape else view


_STEPS: dict[str, Callable[[View, dict[str, Any]], View | None]] = {
    "neg": lambda view, params: view.scaled(jnp.float32(-1)),
    "convert_element_type": lambda view, params: view,
    "copy": lambda view, params: view,
    "transpose": lambda view, params: view.transposed(params["permutation"]),
    "reshape": lambda view, params: None if params.get("dimensions") else view.reshaped(params["new_sizes"]),
    "squeeze": lambda view, params: view.reshaped(
        [n for i, n in enumerate(view.shape) if i not in params["dimensions"]]
    ),
    "broadcast_in_dim": lambda view, params: view.broadcast(params["shape"], params["broadcast_dimensions"]),
    "slice": lambda view, params: view.sliced(params["start_indices"], params["limit_indices"], params["strides"]),
}


# -- products ----------------------------------------------------------------------------------------------------------


def _product(equation: Any, values: Sequence[Value], result: Value, tape: Tape) -> Value:
    """The result of a product, cut if every view in it is a weight there."""
    found: list[tuple[Use, Left]] = []
    for side, value in enumerate(values):
        # a product without activations is cut too, unless its derivative would be larger than that of the weight
        others_active = any(other.active for other in values if other is not value)
        small = jnp.size(result.array) < jnp.size(value.array) or equation.primitive.name == "gather"
        for view in value.views:
            use = PRODUCTS[equation.primitive.name](view, side, values, equation.params)
            if use is None or not (others_active or small):
                tape.note([Value(None, (view,))], WHOLE)
            else:
                found.append(use)
    if not found:
        return result
    shape, dtype = result.array.shape, result.array.dtype
    y = result.array + tape.offset(0, shape, dtype)
    tape.record(Cut(shape, dtype, tuple(use for use, _ in found)), tuple(left for _, left in found))
    return Value(y, active=True)


PRODUCTS: dict[str, Callable[[View, int, Sequence[Value], dict[str, Any]], tuple[Use, Left] | None]] = {
    "dot_general": lambda view, side, values, params: uses.product(
        view, side, values[1 - side].array, params["dimension_numbers"]
    ),
    "conv_general_dilated": lambda view, side, values, params: uses.convolution(view, side, values[0].array, params),
    "gather": lambda view, side, values, params: uses.gather(view, values[1].array, params),
    "dynamic_slice": lambda view, side, values, params: uses.dynamic_slice(
        view, [value.array for value in values[1:]], params["slice_sizes"]
    ),
}


# -- loops and branches ------------------------------------------------------------------------------------------------


def _scan(equation: Any, values: list[Value], tape: Tape) -> list[Value]:
    """A loop: its steps' ε and factors are stacked, and its steps are positions of the weights they share."""
    params = equation.params
    constants, carries, length = params["num_consts"], params["num_carry"], params["length"]
    consts, init, xs = values[:constants], values[constants:][:carries], values[constants + carries :]
    body = params["jaxpr"]
    handed = [a is b for a, b in zip(body.jaxpr.invars[constants:], body.jaxpr.outvars[:carries], strict=False)]
    changed = lambda values: [value for value, kept in zip(values, handed) if not kept]
    tape.note(changed(init), WHOLE)
    inside = lambda value: replace(value, views=tuple(view.entered() for view in value.views))
    cuts: list[Cut] = []

    def step(carry: Sequence[Any], slices: tuple[Sequence[Any], Sequence[Array] | None]) -> Any:
        arrays, offsets = slices
        inner = Tape(offsets, tape.notes)
        moving = iter(carry)
        own = [inside(v) if kept else Value(next(moving), active=True) for v, kept in zip(init, handed)]
        rows = [
            Value(a, tuple(view.stepped() for view in x.views), active=x.active)
            for a, x in zip(arrays, xs, strict=True)
        ]
        out = run(body, [*map(inside, consts), *own, *rows], inner)
        inner.note(changed(out) + out[carries:], WHOLE)
        cuts[:] = inner.cuts
        after = [_strong(value.array) for value in changed(out)]
        return after, ([value.array for value in out[carries:]], inner.lefts)

    start = [_strong(value.array) for value in changed(init)]
    arrays = [value.array for value in xs]
    jax.eval_shape(lambda carry, x: step(carry, ([a[0] for a in x], None)), start, arrays)  # finds the cuts
    offsets = [tape.offset(i, (length, *cut.shape), cut.dtype) for i, cut in enumerate(cuts)]
    end, (ys, lefts) = jax.lax.scan(
        step, start, (arrays, offsets), length=length, reverse=params["reverse"], unroll=params["unroll"]
    )
    for cut, own in zip(list(cuts), lefts, strict=True):
        stack = lambda use, left: jax.tree.map(partial(uses.gathered, tied=use.outer[-1] is None), left)
        stacked = tuple(map(stack, cut.uses, own))
        tape.record(Cut((length, *cut.shape), cut.dtype, tuple(use.left_loop() for use in cut.uses)), stacked)
    last = iter(end)
    finals = [value if kept else Value(next(last), active=True) for value, kept in zip(init, handed, strict=True)]
    return finals + [Value(y, active=True) for y in ys]


def _strong(array: Any) -> Any:
    """Without JAX's weak type, which an ε may have taken away: a loop's carry keeps its type."""
    return jax.lax.convert_element_type(array, array.dtype) if jnp.issubdtype(array.dtype, jnp.number) else array


def _cond(equation: Any, values: list[Value], tape: Tape) -> list[Value]:
    """Branches: each has its ε; the factors of those that are not taken are zero."""
    index, *operands = values
    tape.note([index], WHOLE)
    branches = equation.params["branches"]
    arrays = [value.array for value in operands]
    cuts: list[list[Cut]] = [[] for _ in branches]

    def taken(which: int, offsets: Sequence[Array] | None, arrays: Sequence[Any]) -> Any:
        inner = Tape(offsets, tape.notes)
        own = [replace(value, array=array) for value, array in zip(operands, arrays, strict=True)]
        out = run(branches[which], own, inner)
        inner.note(out, WHOLE)
        cuts[which] = inner.cuts
        return [_strong(value.array) for value in out], inner.lefts

    lefts = [jax.eval_shape(lambda a, i=i: taken(i, None, a), arrays)[1] for i in range(len(branches))]
    flat = [cut for own in cuts for cut in own]
    offsets = [tape.offset(i, cut.shape, cut.dtype) for i, cut in enumerate(flat)]

    def branch(which: int) -> Callable[[Any], Any]:
        def evaluate(operands: Any) -> Any:
            arrays, offsets = operands
            before = sum(len(own) for own in cuts[:which])
            out, own = taken(which, offsets[before : before + len(cuts[which])], arrays)
            zeros = [jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), others) for others in lefts]
            zeros[which] = own
            return out, [left for others in zeros for left in others]

        return evaluate

    out, kept = jax.lax.switch(index.array, [branch(i) for i in range(len(branches))], (arrays, offsets))
    for cut, own in zip(flat, kept, strict=True):
        tape.record(cut, own)
    return [Value(array, active=True) for array in out]
