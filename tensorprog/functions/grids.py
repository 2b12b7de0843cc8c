"""Even grids over N(0, 1), and Mehler's kernel on them: what functions of several Gaussians are integrated by.

Sums over an even grid converge geometrically for smooth functions, since the Gaussian vanishes at the ends, and take
kinks and oscillations as they come. Beside the finest grid stand coarser ones whose steps and places have nothing in
common with its own: what it does not resolve, they resolve otherwise, so that their distance bounds its error.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
NODES = 360
REACH = 12.0
"""Where a grid ends, in deviations: the Hermite functions of degree 47, √φ h₄₇, are below 1e-15 there."""
STEP = 2 * REACH / NODES
COARSER = ((1.1728, 0.3141), (1.3119, -0.2236), (1.4735, 0.1123))
"""Steps of the coarser grids, in steps of the finest, and how far they are off the symmetric place, in their own."""
SAFETY = 2.0
"""The error in units of the largest distance between grids: kinks and jumps fall between nodes by chance."""
CLIMBED, NARROW = 40, 1.5
"""Steps towards a peak, and how far above all nodes one is that is too narrow for them."""
_DIRECT = 0.7
"""Correlations below which Mehler's kernel is wide beside the step."""


@lru_cache(maxsize=1)
def grids() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes and N(0, 1)'s weights (grids, nodes), and steps (grids,); the finest, symmetric one first, for jumps at 0.

    All have as many nodes; those beyond reach have no weight and lie at 0.
    """
    steps = STEP * np.array([1.0, *(factor for factor, _ in COARSER)])
    off = np.array([0.0, *(place for _, place in COARSER)])
    nodes = steps[:, None] * (np.arange(NODES) + 0.5 - NODES / 2 + off[:, None])
    inside = np.abs(nodes) <= REACH
    weights = np.where(inside, steps[:, None] * np.exp(-(nodes**2) / 2) / np.sqrt(2 * np.pi), 0.0)
    return np.where(inside, nodes, 0.0), weights, steps


def chosen(bounds: bool, dtype: jnp.dtype) -> tuple[Array, Array, Array]:
    """The grids that are summed over: the finest alone, or with what bounds its error."""
    nodes, weights, steps = (jnp.asarray(part if bounds else part[:1], dtype) for part in grids())
    return nodes, weights, steps


def apart(found: Array) -> Array:
    """A bound of the finest grid's error, from what all of them found (grids, …)."""
    return SAFETY * jnp.abs(found - found[0]).max(0)


def unseen(fn: Callable[[Array], Array], start: Array, seen: Array) -> Array:
    """About how much of ∫ |fn| φ a narrow peak holds that lies between the nodes, where fn(z) rises from `start`.

    `seen` is the largest |fn| φ at the nodes. A peak beyond that falls off within a step, or a node would see it.
    """
    size = len(start)
    towards = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * size, indexing="ij"), -1).reshape(-1, size)
    height = lambda z: jnp.nan_to_num(jnp.abs(fn(z)) * jnp.exp(-(z**2).sum() / 2) / (2 * np.pi) ** (size / 2), nan=0.0)

    def climb(_: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        at, length = state
        tried = at + length * jnp.asarray(towards, at.dtype)
        best = tried[jnp.argmax(jax.vmap(height)(tried))]
        return best, jnp.where((best == at).all(), length / 2, length)

    places = jnp.stack([start, jnp.zeros_like(start)])
    climbed = jax.vmap(lambda z: jax.lax.fori_loop(0, CLIMBED, climb, (z, jnp.asarray(STEP / 2, z.dtype)))[0])(places)
    peak = jax.vmap(height)(climbed).max()
    return jnp.where(peak > NARROW * seen, (4 * STEP) ** size * peak, 0.0)  # it may be longer than it is wide


def mehler(correlation: Array, step: Array, nodes: Array) -> Array:
    """The operator F ↦ E[F(y) | ȳ] on samples of √φ F, for correlations in [0, 1]: a matrix (nodes, nodes).

    √φ(x) √φ(y) Σ sᵏ h_k(x) h_k(y) = s^-½ e^{−αx²} G(x − y) e^{−αy²}, α = (1 − s)/(4(1 + s)), G the density of
    N(0, (1 − s²)/s). Near s = 1, where G is narrow beside the step, it is applied to the function of smallest band that
    has these samples, by its Fourier transform: at s = 1 it is the identity.
    """
    near = correlation > _DIRECT
    s = jnp.where(near, correlation, 1.0)
    frequencies = jnp.asarray(2 * np.pi / NODES * np.arange(NODES // 2 + 1), step.dtype) / step
    spectrum = jnp.exp(-(1 - s) * (1 + s) / s * frequencies**2 / 2)
    line = jnp.fft.irfft(spectrum, NODES)
    places = np.abs(np.arange(NODES)[:, None] - np.arange(NODES))
    ends = jnp.exp(-(1 - s) / (4 * (1 + s)) * nodes**2)
    narrow = ends[:, None] * line[places] * ends / jnp.sqrt(s)
    s = jnp.where(near, 0.0, correlation)
    rest, tilt = (1 - s) * (1 + s), (1 - s) / (4 * (1 + s))
    x, y = nodes[:, None], nodes[None, :]
    exponent = -((x - y) ** 2) * s / (2 * rest) - tilt * (x**2 + y**2)
    wide = step * jnp.exp(exponent) / jnp.sqrt(2 * np.pi * rest)
    return jnp.where(near, narrow, wide)
