"""What a jump adds to derivatives of Gaussian expectations: the delta functions that JAX's derivatives lack."""

from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tensorprog.functions.derived import Entries, Partial, Slope, Times, origin, width
from tensorprog.functions.kinks import kinks
from tensorprog.functions.quadrature import conditional

# Places to split a conditional expectation at: functions of the networks' kind change near the origin at scale 1.
_GRADED = np.concatenate([[0.0], *([-x, x] for x in 0.25 * 4.0 ** np.arange(8))])

_ASIDE = (1.0, 64.0, 1024.0)


def _heights(fn: Callable, below: Array, above: Array, numbers: tuple) -> Array:
    """fn(above) - fn(below) (kinks, entries of fn) where that is a jump, else 0.

    A few floats further out, as sign has its own value at 0; further still where it is another there: what a clip or a
    maximum is taken of is rounded, and at a tie the slope is the mean of both sides.
    """
    at = jax.vmap(lambda z: jnp.asarray(fn(z, *numbers)).astype(z.dtype).reshape(-1))
    real = jnp.isfinite(below)
    eps = jnp.finfo(below.dtype).eps

    def across(floats: float) -> tuple[Array, Array]:
        aside = floats * (4 * eps * jnp.abs(below) + eps / 100)
        low, high = at(jnp.where(real, below - aside, 0.0)), at(jnp.where(real, above + aside, 0.0))
        return high - low, jnp.maximum(jnp.abs(low), jnp.abs(high))

    heights, sizes = zip(*map(across, _ASIDE), strict=True)
    alike = lambda k: jnp.abs(heights[k] - heights[k + 1]) <= 1e-2 * jnp.abs(heights[k + 1]) + 1e3 * eps * sizes[k + 1]
    further = ~alike(0) & alike(1)
    height, size = (jnp.where(further, x[1], x[0]) for x in (heights, sizes))
    jump = (real & (above > below))[:, None] & (jnp.abs(height) > 1e5 * eps * size)
    return jnp.where(jump, height, 0.0)


@lru_cache(maxsize=1024)
def _fixed(fn: Callable, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """(places, heights) of the jumps of a function without numbers."""
    with jax.ensure_compile_time_eval():
        below, above = kinks(origin(fn), (), jnp.dtype(dtype))
        heights = np.asarray(_heights(fn, below, above, ())) if len(below) else np.zeros((0, 1))
        places = np.asarray(below + (above - below) / 2)
    kept = (heights != 0).any(-1)
    return places[kept], heights[kept]


def jumps(fn: Callable, numbers: tuple, dtype: jnp.dtype) -> tuple[Array, Array]:
    """(places, heights) of fn's jumps; without numbers only those there are, with numbers padded by heights 0."""
    if not numbers:
        places, heights = _fixed(fn, jnp.dtype(dtype).name)
        return jnp.asarray(places, dtype), jnp.asarray(heights, dtype)
    numbers = tuple(lax.stop_gradient(n) for n in numbers)
    below, above = kinks(origin(fn), numbers, dtype)
    heights = _heights(fn, below, above, numbers)
    return jnp.where((heights != 0).any(-1), below + (above - below) / 2, 0.0), heights


def _sum(fn: Callable, numbers: tuple, like: Array, term: Callable[[Array, Array], Array]) -> Array:
    """sum over fn's jumps of term(place, height), of the shape of `like` and the entries of fn; a padding slot costs
    nothing."""
    places, heights = jumps(fn, numbers, like.dtype)
    zero = jnp.zeros_like(like)[..., None] + jnp.zeros(width(fn), like.dtype)
    if not len(places):
        return zero

    def add(total, jump):
        return total + lax.cond((jump[1] != 0).any(), lambda: term(*jump) + zero, lambda: zero), None

    return lax.scan(add, zero, (places, heights))[0]


def _normal(z: Array, variance: Array) -> Array:
    """Density of N(0, variance) at z (..., 1); the variance kept off 0 so that the density stays finite."""
    variance = jnp.maximum(variance, jnp.finfo(variance.dtype).eps ** 2)
    return (jnp.exp(-z * z / (2 * variance)) / jnp.sqrt(2 * np.pi * variance))[..., None]


def _given(fn: Callable, place: Array, a: Array, b: Array, c: Array, numbers: tuple) -> tuple[Array, Array]:
    """(E fn(v) given u = place, its derivative in v's mean, jumps included)."""
    safe = jnp.where(a > 0, a, 1.0)
    centre = jnp.where(a > 0, c / safe, 0.0) * place
    variance = jnp.maximum(b - jnp.where(a > 0, c * c / safe, 0.0), 0.0)
    shape = jnp.broadcast_shapes(centre.shape, variance.shape)
    centre, variance = (jnp.broadcast_to(x, shape).reshape(-1) for x in (centre, variance))
    slope = _shifted(Slope(fn), centre, variance, numbers) + _sum(
        fn, numbers, centre, lambda t, height: height * _normal(t - centre, variance)
    )
    return _shifted(fn, centre, variance, numbers).reshape(*shape, -1), slope.reshape(*shape, -1)


def price(phi, psi, a: Array, b: Array, c: Array, phi_numbers: tuple, psi_numbers: tuple) -> Array:
    """What E phi' psi' lacks of d/dc: sum over jumps J at t of J p(t) E[psi' | u = t], psi' with its own deltas, and
    the same of psi's jumps with phi' without."""
    like = jnp.zeros(jnp.broadcast_shapes(a.shape, b.shape, c.shape), c.dtype)

    def of_phi(t, height):
        return height * _normal(t, a) * _given(psi, t, a, b, c, psi_numbers)[1]

    def of_psi(t, height):
        return height * _normal(t, b) * _given(Slope(phi), t, b, a, c, phi_numbers)[0]

    return _sum(phi, phi_numbers, like, of_phi) + _sum(psi, psi_numbers, like, of_psi)


def stein(phi, psi, a: Array, b: Array, c: Array, phi_numbers: tuple, psi_numbers: tuple) -> Array:
    """What E u phi'(u) psi(v) lacks: sum over phi's jumps J at t of t J p(t) E[psi | u = t]."""
    like = jnp.zeros(jnp.broadcast_shapes(a.shape, b.shape, c.shape), c.dtype)

    def term(t, height):
        return t * height * _normal(t, a) * _given(psi, t, a, b, c, psi_numbers)[0]

    return _sum(phi, phi_numbers, like, term)


def stein_mean(phi, a: Array, numbers: tuple) -> Array:
    """What E u phi'(u) lacks: sum over phi's jumps J at t of t J p(t)."""
    return _sum(phi, numbers, a, lambda t, height: t * height * _normal(t, a))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _shifted(fn: Callable, centre: Array, variance: Array, numbers: tuple) -> Array:
    """E fn(centre + sqrt(variance) w), w standard normal, (rows, entries of fn); centre and variance (rows,)."""
    below, _ = kinks(origin(fn), numbers, centre.dtype)
    edges = jnp.sort(jnp.concatenate([below, jnp.asarray(_GRADED, centre.dtype)]))
    edges = jnp.broadcast_to(edges, (len(centre), len(edges)))
    spread = jnp.sqrt(jnp.maximum(variance, jnp.finfo(centre.dtype).eps ** 4))
    return conditional((fn,), numbers, centre, spread, edges)[..., 0]


@_shifted.defjvp
def _shifted_jvp(fn, primals, tangents):
    """d/d centre = E fn', d/d variance = E (v - centre) fn'(v) / (2 variance), fn' with its deltas."""
    centre, variance, numbers = primals
    d_centre, d_variance, d_numbers = tangents
    slope = _shifted(Slope(fn), centre, variance, numbers)
    moment = _shifted(Times(Slope(fn)), centre, variance, numbers) - centre[:, None] * slope
    slope += _sum(fn, numbers, centre, lambda t, height: height * _normal(t - centre, variance))
    away = lambda t: (t - centre)[:, None] * _normal(t - centre, variance)
    moment += _sum(fn, numbers, centre, lambda t, height: height * away(t))
    wide = variance[:, None]
    least = jnp.finfo(variance.dtype).eps
    spreading = jnp.where(wide > least, moment / (2 * jnp.where(wide > least, wide, 1.0)), 0.0)
    tangent = d_centre[:, None] * slope + d_variance[:, None] * spreading
    for k, d in enumerate(d_numbers):
        partial = Entries(fn, k, d.size) if d.ndim else Partial(fn, k)
        moved = _shifted(partial, centre, variance, numbers)
        tangent += (moved.reshape(*tangent.shape, -1) * d.reshape(-1)).sum(-1)
    return _shifted(fn, centre, variance, numbers), tangent
