"""Expectations of functions of two Gaussians a side, against closed forms, up to correlation 1, with bounds."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensorprog.functions.crossing import crossing
from tensorprog.functions.joint import joint

CORRELATIONS = np.array([0.0, 0.5, 0.9, 0.995, 0.9998, 1 - 1e-8, 1.0, -1.0, -0.999])
BOTH = ((0, 1), (0, 1))


@partial(jax.jit, static_argnums=0)
def across(fn: Any, cov: Any, between: Any) -> Any:
    return crossing((fn, fn), BOTH, 2, (cov, cov, between), ())


@partial(jax.jit, static_argnums=0)
def square(fn: Any, cov: Any) -> Any:
    return joint(fn, fn, cov, ())


def waves(scale: float, variance: Any, correlation: Any) -> Any:
    """E sin(s u) sin(s v) of Gaussians of one variance."""
    q = scale**2 * variance
    return (np.exp(-q * (1 - correlation)) - np.exp(-q * (1 + correlation))) / 2


@pytest.mark.slow
def test_oscillations_up_to_correlation_one() -> None:
    """a·sin(6b), b of variances from 1e-3 to 2, and sin(4(a + b)) of dependent a and b with one Gaussian of a's own."""
    variances = np.array([1e-3, 0.1, 2.0])[:, None]
    cov = np.zeros((3, 9, 2, 2))
    cov[..., 0, 0], cov[..., 1, 1] = 1.0, variances
    between = CORRELATIONS[:, None, None] * cov
    value, bound = across(lambda z, n: z[0] * jnp.sin(6 * z[1]), cov, between)
    truth = CORRELATIONS * waves(6.0, variances, CORRELATIONS)
    assert (np.abs(value - truth) <= bound).all()
    assert np.abs(value - truth).max() < 1e-12
    assert bound.max() < 1e-9


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.full)])
def test_dependent_gaussians_turned_against_each_other(dtype: str) -> None:
    """sin(3(a + b)) where the other input's Gaussians are correlated with these in no common direction."""
    own, other = np.array([[1.0, 0.8], [0.8, 2.0]]), np.array([[0.5, -0.1], [-0.1, 1.5]])
    turn = lambda t: np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    roots = np.linalg.cholesky(own), np.linalg.cholesky(other)
    covs, truths = [], []
    for s1, s2, t in ((0.999, -0.9, 0.4), (0.6, 0.3, -1.0), (1.0, 1.0, 2.0), (-0.99, 0.0, 0.1)):
        c = roots[0] @ turn(t) @ np.diag([s1, s2]) @ turn(1.3) @ roots[1].T
        covs.append(c)
        u, v, w = own.sum(), other.sum(), c.sum()
        truths.append((np.exp(-4.5 * (u + v - 2 * w)) - np.exp(-4.5 * (u + v + 2 * w))) / 2)
    fn = lambda z, n: jnp.sin(3 * (z[0] + z[1]))
    given = [jnp.asarray(np.broadcast_to(x, (4, 2, 2)), dtype) for x in (own, other, np.stack(covs))]
    value, bound = jax.jit(lambda *c: crossing((fn, fn), BOTH, 2, c, ()))(*given)
    off = np.abs(np.asarray(value) - truths)
    assert (off <= bound).all()
    assert off.max() < (1e-12 if dtype == "float64" else 3e-6)


def arccosine(correlation: Any) -> Any:
    return (np.sqrt(1 - correlation**2) + (np.pi - np.arccos(correlation)) * correlation) / (2 * np.pi)


@pytest.mark.full
def test_kinks_and_jumps_up_to_correlation_one() -> None:
    """They converge slowly: bounds hold, and are small."""
    cov = np.broadcast_to(np.diag([1.0, 2.0]), (9, 2, 2))
    between = CORRELATIONS[:, None, None] * cov
    cases = (
        (lambda z, n: jax.nn.relu(z[0] + 2 * z[1]), 9 * arccosine(CORRELATIONS), 1e-5),
        (lambda z, n: jax.nn.relu(z[0]) * jax.nn.relu(z[1]), 2 * arccosine(CORRELATIONS) ** 2, 2e-4),
        (lambda z, n: jnp.where(z[0] + 1.3 * z[1] > 0, 1.0, 0.0), 0.5 - np.arccos(CORRELATIONS) / (2 * np.pi), 2e-3),
    )
    for fn, truth, most in cases:
        value, bound = across(fn, cov, between)
        assert (np.abs(value - truth) <= bound).all()
        assert bound.max() <= most


def test_bounds_hold_where_functions_oscillate_between_the_nodes() -> None:
    """E cos²(g₁² + g₂²) at variances from 0.1 to 60: no grid is part of another, so they do not err alike."""
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(40, 2, 2))
    covs = parts @ np.swapaxes(parts, 1, 2)
    covs *= (2 * np.exp(rng.uniform(np.log(0.1), np.log(60), size=40)) / np.trace(covs, axis1=1, axis2=2))[
        :, None, None
    ]
    covs = np.concatenate([covs, 20 * np.eye(2)[None]])
    value, bound = square(lambda z, n: jnp.cos(z[0] ** 2 + z[1] ** 2), covs)
    truth = 0.5 + 0.5 * np.prod((1 - 4j * np.linalg.eigvalsh(covs)) ** -0.5, axis=-1).real
    off = np.abs(value - truth)
    assert (off <= bound).all()
    assert off.max() > 1e-2, "the case is what it is said to be"
    assert bound.max() < 0.3


def test_bounds_see_peaks_between_the_nodes() -> None:
    """E exp(−1000 (a² + ab + b²)): narrower than a step, wherever it lies."""
    form = 1000 * np.array([[1.0, 0.5], [0.5, 1.0]])
    covs = np.stack([np.array([[1.0, 0.3], [0.3, 0.7]]) * s for s in (0.3, 1.0, 5.0, 20.0, 40.0)])
    bell = lambda z, n: jnp.exp(-500 * (z[0] ** 2 + z[0] * z[1] + z[1] ** 2))
    value, bound = square(bell, covs)
    truth = np.linalg.det(np.eye(2) + 2 * form @ covs) ** -0.5
    assert (np.abs(value - truth) <= bound).all()
    assert (np.abs(value - truth) > 0.9 * truth).any(), "the case is what it is said to be"


@pytest.mark.full
def test_gaussians_that_both_sides_share() -> None:
    """E cos(g₁ + g₂) cos(g₂ + g₃) of three Gaussians of one input, of which both functions read the second."""
    cov = np.array([[1.0, 0.3, 0.2], [0.3, 2.0, -0.4], [0.2, -0.4, 0.5]])
    functions = (lambda z, n: jnp.cos(z[0] + z[1])), (lambda z, n: jnp.cos(z[1] + z[2]))
    blocks = cov[:2, :2], cov[1:, 1:], cov[:2, 1:]
    value, bound = jax.jit(lambda *c: crossing(functions, ((0, 1), (1, 2)), 3, c, ()))(*blocks)
    plus, minus = np.array([1, 2, 1]), np.array([1, 0, -1])
    truth = (np.exp(-plus @ cov @ plus / 2) + np.exp(-minus @ cov @ minus / 2)) / 2
    assert abs(value - truth) <= bound
    assert abs(value - truth) < 1e-12
