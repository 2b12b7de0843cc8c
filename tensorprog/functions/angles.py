"""The angle of a point in the right half plane, in operations that compilers vectorise.

XLA leaves arccos, arcsin and arctan2 to one library call a number on CPU, which costs ten times as much as all the rest
of an arc-cosine kernel. What stands here are a polynomial and a rational function, with branches by selection.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

_SINGLE = (
    -0.3333329908914643, 0.19998548284937576, -0.1426424168683371, 0.10952185806193356, -0.08403450406638949,
    0.05795759469615495, -0.031177846775384627, 0.010914606148425945, -0.001793621778701852,
)  # fmt: skip
"""(arctan(t)/t - 1)/t^2 by powers of t^2 for t from 0 to 1: of least relative error in arctan, 2.6e-9."""
_ABOVE = (-64.85021904942025, -122.88666844901361, -75.00855792314705, -16.157537187333652, -0.8750608600031904)
_BELOW = (194.5506571482614, 485.3903996359137, 432.88106049129027, 165.02700983169885, 24.858464901423062, 1.0)
"""The same as a rational function, right to 2e-16 for |t| up to 0.66 (Moshier's Cephes library, atan.c)."""
_LOST = {32: -4.371139000186241e-08, 64: 6.123233995736766e-17}
"""What pi/2 lacks in single and in double precision."""


@jax.custom_jvp
def angle(y: Array, x: Array) -> Array:
    """arctan2(y, x) for x >= 0, between -pi/2 and pi/2; 0 at the origin."""
    size = jnp.where(y < 0, -y, y)
    steep = size > x
    low, high = jnp.where(steep, x, size), jnp.where(steep, size, x)
    high = jnp.where(high == 0, jnp.ones_like(high), high)
    bits = jnp.finfo(high.dtype).bits
    found = _double(low, high) if bits == 64 else _single(low, high)
    found = jnp.where(steep, math.pi / 2 - (found - _LOST[bits]), found)
    return jnp.where(y < 0, -found, found)


@angle.defjvp
def _angle_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (y, x), (dy, dx) = primals, tangents
    scale = 1 / (x * x + y * y)
    return angle(y, x), dy * (x * scale) - dx * (y * scale)


def _single(low: Array, high: Array) -> Array:
    """arctan(low/high) from 0 to pi/4."""
    t = low / high
    z = t * t
    return t + t * z * _horner(_SINGLE, z)


def _double(low: Array, high: Array) -> Array:
    """The same to the last digits of double precision: from 0.66 on, the angle that is left from pi/4."""
    far = low > 0.66 * high
    t = jnp.where(far, low - high, low) / jnp.where(far, low + high, high)
    z = t * t
    found = t + t * z * (_horner(_ABOVE, z) / _horner(_BELOW, z))
    return jnp.where(far, math.pi / 4 + (found + _LOST[64] / 2), found)


def _horner(coefficients: tuple[float, ...], z: Array) -> Array:
    """sum_k coefficients_k z^k."""
    total = jnp.full_like(z, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * z + coefficient
    return total
