"""Functions as piecewise polynomials: what a compiled program evaluates in place of a user's function.

On each panel of a line a function and its slope are polynomials of degree 15 to rounding; panels end at kinks and
jumps, and are halved until it is so. A program that integrates over them holds arrays, and serves every function.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np

from tensorprog.functions.curves import Known, NoCurve
from tensorprog.functions.kinks import Features, known_features
from tensorprog.functions.quadrature import NODES, WEIGHTS, reach
from tensorprog.functions.series import nodes_between

Array = np.ndarray
LADDER = (32, 128, 512)
"""Numbers of panels that programs are compiled for."""
KINKS = (8, 64, 256)
"""Numbers of kinks."""
SHAPES = ((-3,), (-4,))
"""In place of the shapes of its numbers: panels (P, 34), and features (F, 4)."""
_DEGREE = 16
_FITTED = np.stack(
    [(2 * n + 1) / 2 * WEIGHTS * np.polynomial.legendre.Legendre.basis(n)(NODES) for n in range(_DEGREE)]
)
_EPS = float(np.finfo(float).eps)
_HALVINGS = 40


@dataclass(frozen=True)
class Paneled:
    """z -> a function (order 0) or its slope (order 1), of panels with their ends and coefficients of both."""

    order: int = 0

    def __call__(self, z: Any, panels: Any, features: Any) -> Any:
        place = jnp.searchsorted(panels[:, 0], z, side="right") - 1
        own = panels[jnp.clip(place, 0, len(panels) - 1)]
        left, right, own = own[0], own[1], own[2 + _DEGREE * self.order : 2 + _DEGREE * (self.order + 1)]
        t = jnp.clip((2 * z - left - right) / (right - left), -1.0, 1.0)
        before, total = jnp.zeros_like(t), jnp.zeros_like(t)
        for n in range(_DEGREE - 1, 0, -1):  # Clenshaw's sum of Legendre polynomials
            total, before = own[n] + (2 * n + 1) / (n + 1) * t * total - (n + 1) / (n + 2) * before, total
        return own[0] + t * total - before / 2

    def features(self, panels: Any, features: Any) -> Features:
        """Places below and above kinks, steep places, scales, `inf` where there are fewer."""
        far = jnp.full(1, jnp.inf, features.dtype)
        return Features(features[:, 0], features[:, 1], features[:2, 2], features[:4, 3], far)


@lru_cache(maxsize=512)
def paneled(known: Known, far: float) -> tuple[Array, Array]:
    """Numbers of `Paneled` for a function and its slope on [-far, far], beyond which they stand still.

    **Raises:** `NoCurve` where they are no such polynomials.
    """
    found = known_features(known.fns[0], known.numbers)
    kinks = np.concatenate([found.below, found.above])
    ends = np.unique(np.clip(np.concatenate([kinks, *_around(found, far), [0.0]]), -far, far))
    left, right = ends[:-1], ends[1:]
    beside = _beside(known, far)
    done: list[Array] = []
    for _ in range(_HALVINGS):
        values = known(nodes_between(left, right).reshape(-1)).reshape(len(left), len(NODES), -1)
        if not np.isfinite(values).all():
            raise NoCurve("it is infinite or undefined somewhere")
        sums = np.moveaxis(values, 1, 2) @ _FITTED.T  # (panels, 2, 16)
        size = np.maximum(np.abs(values).max(1), beside(left, right))
        # The argument's own rounding, where the function is steep.
        width, middle = (right - left)[:, None], np.abs(left + right)[:, None] / 2
        size = size + middle * np.abs(np.diff(values, axis=1)).max(1) * len(NODES) / width
        rough = (np.abs(sums[..., -3:]).max(-1) > 16 * _EPS * size + 1e-280).any(-1)
        rough &= right - left > 64 * _EPS * (1 + np.abs(left))
        done.append(np.column_stack([left, right, sums.reshape(len(sums), -1)])[~rough])
        if not rough.any():
            break
        middle = (left + right)[rough] / 2
        left, right = np.concatenate([left[rough], middle]), np.concatenate([middle, right[rough]])
        if len(left) + sum(map(len, done)) > LADDER[-1]:
            raise NoCurve("it has too many panels")
    panels = np.concatenate(done)
    return panels[np.argsort(panels[:, 0])], _listed(found)


def _beside(known: Known, far: float) -> Any:
    """(left, right) -> (panels, 2): the largest values as far from 0 as a panel, and a deviation farther. Beside these
    what is a panel's own counts: 1 - tanh² is nothing but rounding where tanh is nearly 1."""
    radii = np.geomspace(1e-4, 1.0, 1024) * far
    sizes = np.abs(known(np.concatenate([-radii, radii]))).reshape(2, len(radii), -1).max(0)
    largest = np.maximum.accumulate(np.where(np.isfinite(sizes), sizes, 0.0))

    def at(left: Array, right: Array) -> Array:
        reached = np.maximum(np.abs(left), np.abs(right)) + far / reach(np.dtype(float))
        return largest[np.minimum(np.searchsorted(radii, reached), len(radii) - 1)]

    return at


def _around(found: Features, far: float) -> list[Array]:
    """Ends of panels that see how a function changes beside its steep places and at its scales."""
    steep = found.steep[:, None] + np.outer(np.abs(found.steep), 16.0 ** -np.arange(1.0, 5.0))
    scales = np.concatenate([found.scales, far * 2.0 ** -np.arange(12.0)])
    mirrored = 2 * np.repeat(found.steep, 4) - steep.reshape(-1)
    return list(map(np.asarray, (found.steep, steep.reshape(-1), mirrored, scales, -scales)))


def _listed(found: Features) -> Array:
    count = next((k for k in KINKS if k >= max(len(found.below), 12)), None)
    if count is None:
        raise NoCurve("it has too many kinks")
    whole = np.full((count, 4), np.inf)
    for k, part in enumerate((found.below, found.above, found.steep[:4], found.scales[:12])):
        whole[: len(part), k] = part
    return whole


def arrays(all_panels: list[Array], all_features: list[Array]) -> tuple[Array, Array]:
    """(functions, P, 34), or 18 where nobody asks for slopes, and (functions, F, 4): those of several functions, filled
    up with panels beyond all."""
    count = next(k for k in LADDER if k >= max(map(len, all_panels)))
    kinks = max(map(len, all_features))
    panels = np.zeros((len(all_panels), count, max(own.shape[1] for own in all_panels)))
    panels[..., :2] = np.inf
    features = np.full((len(all_features), kinks, 4), np.inf)
    for k, (own, places) in enumerate(zip(all_panels, all_features, strict=True)):
        panels[k, : len(own), : own.shape[1]] = own
        features[k, : len(places)] = places
    return panels, features
