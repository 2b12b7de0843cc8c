"""The rate test: do finite networks converge to a limit at the rate 1/√n, and to this limit and no other?

A slope alone cannot see a limit that is a few per cent wrong; the floor, an unbiased estimate of what is left at the
largest width once sampling noise is taken out, can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tensorprog as tp


@dataclass(frozen=True)
class Rate:
    """log-log slope of the error against width with its standard error, and the floor as a fraction of the limit."""

    slope: float
    se: float
    floor: float

    def holds(self) -> bool:
        return abs(self.slope + 0.5) <= 0.05 + 2 * self.se and self.se <= 0.05 and self.floor <= 0.01

    def __str__(self) -> str:
        return f"slope {self.slope:.3f} ± {self.se:.3f}, floor {100 * self.floor:.2f} %"


def rate(limit: Any, samples: dict[int, np.ndarray]) -> Rate:
    """From samples (seeds, N1, N2) by width: the slope over all widths, the floor at the largest."""
    limit = np.asarray(limit, dtype=np.float64)
    scale = np.linalg.norm(limit)
    widths = sorted(samples)
    logs, errors = [], []
    for width in widths:
        squared = ((samples[width] - limit) ** 2).reshape(len(samples[width]), -1).sum(1) / scale**2
        logs.append(0.5 * np.log(squared.mean()))
        errors.append(0.5 * squared.std(ddof=1) / np.sqrt(len(squared)) / squared.mean())
    x = np.log(widths) - np.log(widths).mean()
    slope = float((x * logs).sum() / (x**2).sum())
    se = float(np.sqrt(((x * errors) ** 2).sum()) / (x**2).sum())
    top = samples[widths[-1]]
    count, mean = len(top), top.mean(0)
    noise = ((top - mean) ** 2).sum() / (count * (count - 1))
    floor = max(0.0, ((mean - limit) ** 2).sum() - noise) ** 0.5 / scale
    return Rate(slope, se, float(floor))


def finite(program: tp.Program, x: Any, width: int, seeds: int, what: str, start: int = 0) -> np.ndarray:
    """Empirical kernels (seeds, N, N) of networks of one width, float32."""
    x = jnp.asarray(x, jnp.float32)

    @jax.jit
    def one(key: jax.Array) -> jax.Array:
        params = jax.tree.map(lambda p: p.astype(jnp.float32), tp.init(program, key, width))
        if what == "nngp":
            return tp.empirical.nngp(program, params, x)
        return tp.empirical.ntk(lambda q, y: tp.apply(program, q, y), params, x)

    keys = jax.random.split(jax.random.key(1000 + start), seeds)
    return np.stack([np.asarray(one(key), dtype=np.float64) for key in keys])


def samples(program: tp.Program, x: Any, what: str, seeds: int = 100) -> dict[int, np.ndarray]:
    """Widths spanning 16×; at the largest at least as many seeds as the floor needs, more where seeds differ more."""
    return {64: finite(program, x, 64, 60, what), 256: finite(program, x, 256, 40, what, 1),
            1024: finite(program, x, 1024, seeds, what, 2)}  # fmt: skip
