"""The laws of a model's parameters at initialisation, exactly: the draw is run with quantiles in place of random bits.

An initialiser is a function of uniform bits. Run on the bits Φ(t) at an even grid of t, with weights φ(t), it gives
its entries' moments to rounding, for laws that are smooth in t: normal, truncated and uniform ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

from tensorprog.functions.jaxprs import CALLS, ClosedJaxpr, Literal, inner, plain
from tensorprog.importing.sizes import NoPower, Power, power

ENTRIES = 128
"""How many points the grid of the smallest array has, over all shifts of it."""
REACH = 8.0

_MIXING = {
    "dot_general", "sort", "cumsum", "cumprod", "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax",
    "top_k", "gather", "scatter", "scan", "while", "cond",
}  # fmt: skip
_ORTHOGONAL = {"qr", "householder_product", "geqrf", "svd", "eigh", "lu", "cholesky", "triangular_solve"}


@dataclass(frozen=True)
class Law:
    """What an array's entries are: independent of one law, with this mean and variance, powers of the width.

    `problem` says why they are not; the variance then says nothing.
    """

    mean: Power
    variance: Power
    gaussian: bool = True
    problem: str | None = None


@dataclass
class _Drawn:
    """An array of the draw: its keys, and why its entries are not independent functions of random bits, if so."""

    value: Any
    keys: frozenset[bytes] = frozenset()
    mixed: str | None = None


def laws(widths: Sequence[int], draws: Sequence[ClosedJaxpr]) -> list[Law]:
    """The law of each array, from its draw at the trial widths."""
    each = [_moments(draw) for draw in draws]
    return [_law(widths, [trial[k] for trial in each]) for k in range(len(each[0]))]


def shared_keys(draw: ClosedJaxpr) -> tuple[int, int] | None:
    """Two arrays that are drawn from one random key, if there are any."""
    found = _run(draw, 0.5)
    for i, one in enumerate(found):
        for j in range(i + 1, len(found)):
            if one.keys & found[j].keys:
                return i, j
    return None


@dataclass(frozen=True)
class _Moments:
    mean: float
    variance: float
    gaussian: bool
    problem: str | None


def _law(widths: Sequence[int], each: Sequence[_Moments]) -> Law:
    problem = next((m.problem for m in each if m.problem), None)
    mean, variance = Power(0.0, 0.0), Power(0.0, 0.0)
    try:
        mean = power(widths, [m.mean for m in each])
        variance = power(widths, [m.variance for m in each], digits=2e-5)
    except NoPower:
        told = ", ".join(f"{m.variance:.4g} at width {n}" for n, m in zip(widths, each, strict=True))
        problem = problem or f"its entries have variance {told}, which is no power of the width"
    return Law(mean, variance, all(m.gaussian for m in each), problem)


def _moments(draw: ClosedJaxpr) -> list[_Moments]:
    sizes = [math.prod(v.aval.shape) for v in draw.jaxpr.outvars if math.prod(v.aval.shape)]
    shifts = min(max(math.ceil(ENTRIES / min(sizes, default=1)), 1), 64)
    runs = [_run(draw, (k + 0.5) / shifts) for k in range(shifts)]
    return [_of([run[k] for run in runs]) for k in range(len(draw.jaxpr.outvars))]


def _of(runs: Sequence[_Drawn]) -> _Moments:
    """Moments of entries that are monotone in their bits: sorted entries with the grid's weights."""
    values = np.concatenate([np.sort(np.ravel(run.value)).astype(np.float64) for run in runs])
    if not runs[0].keys:
        spread = float(values.var())
        problem = None if spread <= 1e-12 * max(1.0, values.mean() ** 2) else "it is a fixed array of unequal numbers"
        return _Moments(float(values.mean()), 0.0, True, problem)
    if runs[0].mixed is not None:
        return _Moments(0.0, 0.0, False, runs[0].mixed)
    if len(runs[0].keys) > 1:
        return _Moments(0.0, 0.0, False, "its entries are made of several random draws")
    count = np.size(runs[0].value)
    weights = np.concatenate([np.exp(-(_grid(count, (k + 0.5) / len(runs)) ** 2) / 2) for k in range(len(runs))])
    weights /= weights.sum()
    mean = float(weights @ values)
    second = float(weights @ (values - mean) ** 2)
    fourth = float(weights @ (values - mean) ** 4)
    if mean**2 < 1e-8 * second:
        mean = 0.0
    return _Moments(mean, second, abs(fourth - 3 * second**2) < 1e-3 * second**2, None)


def _grid(count: int, shift: float) -> np.ndarray:
    step = 2 * REACH / count
    return -REACH + step * (np.arange(count) + shift)


def _bits(shape: tuple[int, ...], width: int, shift: float) -> Any:
    """Quantiles as random bits, in an order that says nothing."""
    count = math.prod(shape)
    uniform = ndtr(_grid(count, shift)) * 2.0**width
    bits = np.minimum(uniform, np.nextafter(2.0**width, 0)).astype(f"uint{width}")
    return jnp.asarray(np.random.default_rng(count).permutation(bits).reshape(shape))


def _run(draw: ClosedJaxpr, shift: float) -> list[_Drawn]:
    return _evaluated(draw, [_Drawn(jax.random.key(0)) for _ in draw.jaxpr.invars], shift)


def _evaluated(body: ClosedJaxpr, given: Sequence[_Drawn], shift: float) -> list[_Drawn]:
    jaxpr = body.jaxpr
    known = dict(zip(jaxpr.constvars, map(_Drawn, body.consts), strict=True))
    known |= dict(zip(jaxpr.invars, given, strict=True))
    read = lambda atom: _Drawn(atom.val) if isinstance(atom, Literal) else known[atom]
    for equation in jaxpr.eqns:
        known |= dict(
            zip(equation.outvars, _step(jaxpr, equation, list(map(read, equation.invars)), shift), strict=True)
        )
    return [read(atom) for atom in jaxpr.outvars]


def _step(jaxpr: Any, equation: Any, own: list[_Drawn], shift: float) -> list[_Drawn]:
    name, bodies = equation.primitive.name, list(inner(equation))
    if name == "random_bits":
        key = own[0].value
        out = equation.outvars[0].aval
        bits = _bits(out.shape, equation.params["bit_width"], shift)
        return [_Drawn(bits, frozenset({np.asarray(jax.random.key_data(key)).tobytes()}))]
    if name in {*CALLS, "custom_jvp_call", "custom_vjp_call"} and bodies:
        return _evaluated(bodies[0], own, shift)
    keys = frozenset().union(*(d.keys for d in own))
    mixed = next((d.mixed for d in own if d.mixed), None)
    if keys and mixed is None:
        if name in _ORTHOGONAL:
            mixed = "its entries are not independent: it is made orthogonal"
        elif name in _MIXING:
            mixed = f"its entries are not independent: {name} mixes them"
    values = plain(jaxpr, equation, [d.value for d in own])
    return [_Drawn(value, keys, mixed) for value in values]
