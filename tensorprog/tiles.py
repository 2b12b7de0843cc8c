"""Tiles: kernels of any number of inputs, evaluated for blocks of pairs of one fixed shape.

One compilation serves every N: inputs are filled up to whole blocks with copies of a real example, and pairs that
nobody wants are marked.
Without x2 only the upper triangle of blocks is computed, and mirrored. Concrete inputs run a host
loop; inside a user's transformation the same function runs in a `lax.map`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Blocks = tuple[Array, ...]
BYTES = 4 * 2**20
"""Memory that a tile's buffer should stay in: about a core's cache."""


def side(rows: int, *, small: bool) -> int:
    """The side of a tile whose buffer has so many rows: a power of two from 4 to 64 (32 where entries are costly)."""
    largest = 32 if small else 64
    while largest > 4 and rows * largest**2 * 8 > BYTES:
        largest //= 2
    return largest


def blocks(x: tuple[Array, ...], size: int) -> tuple[Array, ...]:
    """Inputs (N, …) as (blocks, size, …), filled up with copies of the last example."""
    n = x[0].shape[0]
    count = -(-n // size)
    index = np.minimum(np.arange(count * size), n - 1)
    return tuple(a[index].reshape(count, size, *a.shape[1:]) for a in x)


def pairs(count1: int, count2: int, symmetric: bool) -> np.ndarray:
    """Block indices to compute: all, or the upper triangle."""
    return np.array([(i, j) for i in range(count1) for j in range(i if symmetric else 0, count2)], dtype=np.int32)


def wanted(i: Any, j: Any, size: int, n1: int, n2: int, symmetric: bool) -> Array:
    """Which pairs of tile (i, j) belong to the result: real examples, strictly above the diagonal when symmetric."""
    row = i * size + jnp.arange(size)[:, None]
    column = j * size + jnp.arange(size)[None, :]
    inside = (row < n1) & (column < n2)
    return inside & (row < column) if symmetric else inside


def host_map(fn: Callable[..., Any], items: Iterable[Any], progress: bool, total: int) -> list[Any]:
    """fn over items in a Python loop, with a progress bar when asked and tqdm is there."""
    bar = _progress(items, total) if progress else items
    return [jax.tree.map(np.asarray, fn(*item)) for item in bar]


def _progress(items: Iterable[Any], total: int) -> Iterable[Any]:
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, total=total, unit="tile", leave=False)


def assemble(tiles: Array, index: np.ndarray, counts: tuple[int, int], ns: tuple[int, int], xp: Any) -> Array:
    """Tiles (T, R, t, t) in the order of `index` as one array (R, N1, N2); missing tiles are 0."""
    _, rows, size, _ = tiles.shape
    place = np.full(counts, 0, dtype=np.int64)
    place[index[:, 0], index[:, 1]] = np.arange(len(index))
    grid = tiles[place]
    whole = xp.moveaxis(grid, 2, 0).swapaxes(2, 3)
    return whole.reshape(rows, counts[0] * size, counts[1] * size)[:, : ns[0], : ns[1]]


def mirrored(whole: Array, swap: np.ndarray, diagonal: Array, xp: Any) -> Array:
    """Symmetric kernels (R, N, N): a copy of what is above the diagonal below it, sites swapped; the given diagonal."""
    n = whole.shape[1]
    above = np.triu(np.ones((n, n), dtype=bool), 1)
    upper = xp.where(above, whole, 0)
    result = upper + upper[swap].swapaxes(1, 2)
    eye = np.eye(n, dtype=bool)
    return xp.where(eye, diagonal[:, :, None], result)


def upper(diagonal: Array, sites: int) -> Array:
    """Kernels of inputs with themselves (sites · sites, N), the pairs of sites below the diagonal copied from above."""
    source = np.arange(sites * sites).reshape(sites, sites)
    return diagonal[np.triu(source).reshape(-1) + np.tril(source.T, -1).reshape(-1)]
