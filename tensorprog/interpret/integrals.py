"""Rules of expectations of functions of one Gaussian a side, their tangents and the bounds on both."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp

from tensorprog.functions import base
from tensorprog.functions.base import Elementwise
from tensorprog.interpret.buffers import Array, Buffer, Context, Result, one_input
from tensorprog.interpret.plan import Group
from tensorprog.loops import mapped

Numbers = tuple[Array, ...]
Both = tuple[Numbers, Numbers]
Call = tuple[tuple[Array, ...], Both]
"""What an expectation is called with: variances and covariances, the functions' numbers."""
Move = list[list[Call]]
"""Calls with something moved by its own error: alternatives, of which the largest sum of changes counts."""


def _numbers(
    group: Group, arrays: dict[str, Any], name: str, context: Context, buffer: Buffer, side: str
) -> tuple[Numbers, list[Numbers]]:
    """Numbers of a group's functions: 0-d where the whole group shares them, (m,) where equations have their own,
    (m, *pairs) where they are scalars of the input; and the same with one scalar moved by its own error, each in turn.
    """
    ids = arrays[name]
    own: tuple[bool, ...] = group.form[-1]  # type: ignore[index]
    if name == "psi_numbers":
        own = own[len(own) - ids.shape[-1] :]
    shapes = _shapes(group, name, ids.shape[-1])
    found, errors = [], {}
    for k in range(ids.shape[-1]):
        if shapes[k]:
            found.append(context.arrays[shapes[k]][ids[0, k] if group.uniform else ids[..., k]])
        elif own[k]:
            value, error = one_input(context, buffer, ids[..., k : k + 1], side)
            found.append(value[:, 0])
            if error is not None:
                errors[k] = error[:, 0]
        else:
            found.append(context.monomials[ids[0, k] if group.uniform else ids[..., k]])
    moved = [(*found[:k], found[k] + error, *found[k + 1 :]) for k, error in errors.items()]
    return tuple(found), moved if buffer.error is not None else []


def _shapes(group: Group, name: str, count: int) -> tuple[tuple[int, ...], ...]:
    """The shapes of a function's numbers; a function of several Gaussians has arrays' entries one by one."""
    fn = group.form[1 if name == "phi_numbers" else 2]  # type: ignore[index]
    return fn.shapes if isinstance(fn, Elementwise) else ((),) * count


def over_equations(group: Group, call: Any, arguments: Sequence[Any], *more: Any) -> Any:
    """call(*arguments, *more), mapped over the group's equations where they have numbers of their own, over all of its
    equations and pairs where inputs have."""
    if group.uniform:
        return call(*arguments, *more)
    if not any(group.form[-1]):  # type: ignore[index]
        return jax.vmap(call)(*arguments, *more)
    call, more = _apart(group, call, more)
    numbers = [n for own in more for n in own]
    rank = max(n.ndim for n in numbers)  # scalars of the inputs have all axes
    # The program's own numbers, one an equation, have none of the pairs' axes.
    longer = lambda x: x.reshape(*x.shape, *(1,) * (rank - x.ndim))
    arguments, more = jax.tree.map(longer, (tuple(arguments), more))
    lead = jnp.broadcast_shapes(*(a.shape[:rank] for a in jax.tree.leaves((arguments, more))))
    flat = lambda x: jnp.broadcast_to(x, (*lead, *x.shape[rank:])).reshape(-1, *x.shape[rank:])
    items = jax.tree.map(flat, (*arguments, *more))
    # Series and quadrature choose by values, which only a loop can; closed forms are vectorised.
    functions = [f for f in group.form[1:3] if not isinstance(f, tuple)]  # type: ignore[index]
    closed = all(isinstance(f, Elementwise) and f.form is not None for f in functions)
    found = jax.vmap(call)(*items) if closed else mapped(lambda item: call(*item), items)
    return jax.tree.map(lambda x: x.reshape(lead), found)


def _apart(group: Group, call: Any, more: tuple[Numbers, ...]) -> tuple[Any, tuple[Numbers, ...]]:
    """Arrays among the numbers stay where they are, and are found by their equation; one that is spread over all pairs
    would be copied for each."""
    shapes = [_shapes(group, name, len(own)) for name, own in zip(("phi_numbers", "psi_numbers"), more, strict=False)]
    if not any(map(any, shapes)):
        return call, more
    kept = [
        tuple(jnp.arange(len(n)) if shape else n for n, shape in zip(own, these, strict=True))
        for own, these in zip(more, shapes, strict=True)
    ]

    def found(*items: Any) -> Any:
        start = len(items) - len(more)
        back = [
            tuple(n[i] if shape else i for n, i, shape in zip(own, item, these, strict=True))
            for own, item, these in zip(more, items[start:], shapes, strict=True)
        ]
        return call(*items[:start], *back)

    return found, tuple(kept)


def pair(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    _, phi, psi, _ = group.form  # type: ignore[misc]
    cov = buffer.value[arrays["cov"]]
    given = None
    if context.matched and context.left is not None and group.itself:
        known = context.left
        error = None if known.error is None else known.error[arrays["left"]]
        numbers = both_numbers(group, arrays, context, buffer)
        return _one(group, known.value[arrays["left"]], error, numbers, buffer, arrays["cov"])
    if context.left is None or context.right is None:
        a, b = buffer.value[arrays["left"]], buffer.value[arrays["right"]]
    else:
        a = context.spread(context.left.value[arrays["left"]], "left")
        b = context.spread(context.right.value[arrays["right"]], "right")
        if group.tables is not None:
            given = (
                _known(context, "left", context.left.sides[group.tables[0]], arrays["left_line"]),
                _known(context, "right", context.right.sides[group.tables[1]], arrays["right_line"]),
            )
        if context.valid is not None:
            cov = jnp.where(context.valid, cov, 0.0)
    itself = jnp.asarray(arrays["left"] == arrays["right"])[:, None] if context.matched else None
    numbers, others = both_numbers(group, arrays, context, buffer)
    roads = partial(base.expect_slope, phi, psi), partial(base.expect_error, phi, psi)
    # What one Gaussian is with itself is done below; here it is made harmless.
    apart = cov if itself is None else jnp.where(itself, 0.0, cov)
    moves: list[Move] = [[[((a, b, apart), n)]] for n in others]
    if buffer.error is not None:
        moves += [[[(moved, numbers)]] for moved in _perturbed(context, buffer, arrays, (a, b, apart))]
    result = _expectation(group, roads, ((a, b, apart), numbers), moves, buffer, arrays["cov"], given)
    if itself is None:
        return result
    error = None if context.left is None or context.left.error is None else context.left.error[arrays["left"]]
    alike = _one(group, a, error, (numbers, others), buffer, arrays["cov"])
    return tuple(None if x is None else jnp.where(itself, x, y) for x, y in zip(alike, result, strict=True))  # type: ignore[return-value]


def both_numbers(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> tuple[Both, list[Both]]:
    """Both functions' numbers, and the same with one scalar moved by its own error, each in turn."""
    phi, phi_moved = _numbers(group, arrays, "phi_numbers", context, buffer, "left")
    psi, psi_moved = _numbers(group, arrays, "psi_numbers", context, buffer, "right")
    return (phi, psi), [*((moved, psi) for moved in phi_moved), *((phi, moved) for moved in psi_moved)]


def _known(context: Context, side: str, table: Any, lines: Any) -> Any:
    """Lines of a table of sides, spread over pairs."""
    return jax.tree.map(lambda x: context.spread(x[lines], side), table)


def one(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    var = buffer.value[arrays["var"]]
    error = None if buffer.error is None else buffer.error[arrays["var"]]
    return _one(group, var, error, both_numbers(group, arrays, context, buffer), buffer, arrays["var"])


def _one(
    group: Group, var: Array, error: Array | None, numbers: tuple[Both, list[Both]], buffer: Buffer, cell: Any
) -> Result:
    """Two functions of one Gaussian. A scalar that both read moves in both at once, too: in one of them alone it does
    not raise E 1(u > −c) 1(u > −c)."""
    _, phi, psi, _ = group.form  # type: ignore[misc]
    own, others = numbers
    call = lambda numbers: ((var,), numbers)
    if phi == psi and len(others) % 2 == 0:
        half = len(others) // 2
        pairs = zip(others[:half], others[half:], strict=True)
        moves: list[Move] = [[[call(p), call(q)], [call((p[0], q[1]))]] for p, q in pairs]
    else:
        moves = [[[call(n)]] for n in others]
    if error is not None:
        moves.append([[((var + error,), own)]])
    roads = partial(base.expect_one_slope, phi, psi), partial(base.expect_one_error, phi, psi)
    return _expectation(group, roads, ((var,), own), moves, buffer, cell)


def mean(group: Group, arrays: dict[str, Any], context: Context, buffer: Buffer) -> Result:
    _, phi, _ = group.form  # type: ignore[misc]
    var = buffer.value[arrays["var"]]
    numbers, others = _numbers(group, arrays, "phi_numbers", context, buffer, "left")
    value, error = over_equations(group, partial(base.mean_error, phi), (var,), numbers)
    if buffer.error is None:
        return _told(value, error) if phi.form is None else value, None, None, None
    for moved, own in ((var + buffer.error[arrays["var"]], numbers), *((var, n) for n in others)):
        error = error + jnp.abs(over_equations(group, partial(base.mean, phi), (moved,), own) - value)
    return value, None, error, None


def _perturbed(
    context: Context, buffer: Buffer, arrays: dict[str, Any], arguments: tuple[Array, Array, Array]
) -> list[tuple[Array, ...]]:
    """Arguments moved by their own errors, one at a time: variances up, the covariance towards 0."""
    assert buffer.error is not None, "errors are being propagated"
    a, b, cov = arguments
    by = jnp.minimum(buffer.error[arrays["cov"]], jnp.abs(cov))
    if context.left is not None and context.right is not None:
        assert context.left.error is not None and context.right.error is not None, "errors come with errors"
        da = context.spread(context.left.error[arrays["left"]], "left")
        db = context.spread(context.right.error[arrays["right"]], "right")
    else:
        da, db = buffer.error[arrays["left"]], buffer.error[arrays["right"]]
    return [(a, b, cov - jnp.sign(cov) * by), (a + da, b, cov), (a, b + db, cov)]


def _expectation(
    group: Group,
    roads: tuple[Any, Any],
    call: Call,
    moves: Sequence[Move],
    buffer: Buffer,
    cell: Any,
    given: Any = None,
) -> Result:
    """A pair expectation, its tangent E φ′ψ′ · (tangent of the covariance), and bounds on both.

    `roads` give value and slope together, and the value alone, called as `call` says; `moves` are what the errors of
    what it is called with do.
    """
    both, alone = roads
    arguments, numbers = call
    need = buffer.error is not None
    opened = [f for f in group.form[1:3] if isinstance(f, Elementwise) and f.form is None]  # type: ignore[index]
    is_open, looped = bool(opened), not all(f.curved for f in opened)
    known = () if given is None else (given,)
    if buffer.tangent is None:
        value, error = over_equations(group, alone, arguments, *numbers, *known)
        (change,) = _changes(moves, (value,), lambda x, n: over_equations(group, alone, x, *n)[:1], looped=looped)
        return (
            (value, None, error + change, None)
            if need
            else (_told(value, error) if is_open else value, None, None, None)
        )

    def both_and_bounds(*everything: Any) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        (value, bound), (slope, slope_bound) = both(*everything)
        return (value, slope), (bound(), slope_bound()) if need or is_open else (value, slope)

    (value, slope), (error, slope_error) = over_equations(group, both_and_bounds, arguments, *numbers, *known)
    tangent = buffer.tangent[cell]
    if buffer.tangent_error is None:
        if is_open:
            value, slope = _told(value, error), jnp.where(tangent == 0, 0.0, _told(slope, slope_error))
        return value, slope * tangent, None, None
    moved = lambda x, n: over_equations(group, both_and_bounds, x, *n)[0]
    changes = _changes(moves, (value, slope), moved, looped=looped)
    error, slope_error = error + changes[0], slope_error + changes[1]
    tangent_error = jnp.abs(slope) * buffer.tangent_error[cell] + slope_error * jnp.abs(tangent)
    return value, slope * tangent, error, tangent_error


def _told(value: Array, bound: Array) -> Array:
    """A value of which no digit is known is none, where nobody asks for its bound: `evaluation` says whose it is."""
    return jnp.where(jnp.isinf(jax.lax.stop_gradient(bound)), jnp.nan, value)


def _changes(moves: Sequence[Move], values: tuple[Array, ...], evaluate: Any, *, looped: bool) -> tuple[Array, ...]:
    """What the moves change in each of the values, added up. `looped`: one compiled integral serves many moves."""
    calls = [call for move in moves for alternative in move for call in alternative]
    found = iter(_each(calls, evaluate) if looped else [evaluate(*call) for call in calls])

    def change(alternative: list[Call]) -> list[Array]:
        own = [next(found) for _ in alternative]
        return [sum((jnp.abs(f[k] - v) for f in own), jnp.zeros_like(v)) for k, v in enumerate(values)]

    total = [jnp.zeros_like(v) for v in values]
    for move in moves:
        largest = [reduce(jnp.maximum, own) for own in zip(*map(change, move), strict=True)]
        total = [t + x for t, x in zip(total, largest, strict=True)]
    return tuple(total)


def _each(calls: list[Call], evaluate: Any) -> list[Any]:
    """The calls' results: those of calls that have their numbers in common by one loop over the others."""
    results: dict[int, Any] = {}
    for k, (_, numbers) in enumerate(calls):
        alike = [j for j, (_, own) in enumerate(calls) if own is numbers]
        if k in results:
            continue
        if len(alike) == 1:
            results[k] = evaluate(*calls[k])
            continue
        arguments = tuple(jnp.stack(x) for x in zip(*(calls[j][0] for j in alike), strict=True))
        found = mapped(lambda given, numbers=numbers: evaluate(given, numbers), arguments)
        results |= {j: jax.tree.map(lambda x, place=place: x[place], found) for place, j in enumerate(alike)}
    return [results[k] for k in range(len(calls))]
