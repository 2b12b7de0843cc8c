"""Tiles: kernels of any number of inputs, evaluated for blocks of pairs of one fixed shape.

One compilation serves every N: inputs are filled up to whole blocks with copies of a real example, and pairs that
nobody wants are marked.
Without x2 only the upper triangle of blocks is computed, and mirrored. Concrete inputs run a host
loop; inside a user's transformation the same function runs in a `lax.map`. Inputs that are equal, all their numbers to
the bit, are found here too: their pairs are not left to correlations that rounding keeps from 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.program import is_concrete

Array = jax.Array
Blocks = tuple[Array, ...]


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


def panels(x: tuple[Array, ...], size: int) -> list[tuple[Array, ...]]:
    """Known inputs (N, …) in pieces of one size, the last filled up with copies of the last example."""
    if not x:
        return [()]
    arrays = [np.asarray(a) for a in x]
    pieces = [[a[start : start + size] for a in arrays] for start in range(0, len(arrays[0]), size)]
    filled = lambda a: a if len(a) == size else np.concatenate([a, np.repeat(a[-1:], size - len(a), axis=0)])
    return [tuple(jax.device_put(filled(a)) for a in piece) for piece in pieces]


def rows_alike(x1: tuple[Array, ...], x2: tuple[Array, ...]) -> np.ndarray | None:
    """Which concrete examples are equal, all their numbers to the bit, (N1, N2); None where no two are."""
    one, two = labels(x1, x2)
    return one[:, None] == two if np.isin(one, two).any() else None


@jax.jit
def rows_alike_traced(x1: tuple[Array, ...], x2: tuple[Array, ...]) -> Array:
    """The same inside a transformation; compiled as one, so that no array of all differences is made."""
    same = [(a[:, None] == b).reshape(len(a), len(b), -1).all(-1) for a, b in zip(x1, x2, strict=True)]
    return jnp.stack(same).all(0)


def distinct(x1: tuple[Array, ...], x2: tuple[Array, ...] | None) -> tuple[tuple[Array, ...], np.ndarray, np.ndarray]:
    """The examples of both batches, known ones each once in the order of their first places, and where those of x1 and
    of x2 (without one of x1) are among them."""
    own = x1 if x2 is None else tuple(jnp.concatenate(pair) for pair in zip(x1, x2, strict=True))
    count, index = len(x1[0]) if x1 else 1, np.arange(len(own[0]) if own else 1)
    if own and all(is_concrete(a) for a in own):
        (known,) = labels(own)
        places = np.unique(known, return_index=True)[1]
        index = np.argsort(np.argsort(places))[known]
        own = tuple(a[np.sort(places)] for a in own)
    return own, index[:count], index if x2 is None else index[count:]


def labels(*batches: tuple[Array, ...]) -> list[np.ndarray]:
    """A number for each example of the batches, that of equal ones the same; there is one where there are no inputs."""
    if not batches[0]:
        return [np.zeros(1, int) for _ in batches]
    known = batches[:1] if all(x is batches[0] for x in batches) else batches
    wide = lambda a: a if a.dtype.itemsize >= 4 else a.astype(np.float32)
    rows = [np.concatenate([wide(np.asarray(a)).reshape(len(a), -1) for a in x], axis=1) for x in known]
    whole = np.ascontiguousarray(np.concatenate(rows) + 0.0)  # -0.0 becomes 0.0
    found = _numbered(whole) if whole.shape[1] else np.zeros(len(whole), int)
    split = np.split(found, np.cumsum([len(r) for r in rows])[:-1])
    return split if len(known) == len(batches) else split * len(batches)


def _numbered(rows: np.ndarray) -> np.ndarray:
    """A number for each row, by a sum of its bits under random weights; where rows that differ have one sum, by sorting
    them whole."""
    bits = rows.view(np.uint32).reshape(len(rows), -1)
    weights = np.random.default_rng(0).integers(1, 2**63, bits.shape[1], dtype=np.uint64)
    sums = np.array([np.dot(own.astype(np.uint64), weights) for own in bits])
    _, first, found = np.unique(sums, return_index=True, return_inverse=True)
    again = first[found]
    moved = again != np.arange(len(rows))
    if (bits[moved] == bits[again[moved]]).all():
        return found.reshape(-1)
    keys = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize)))[:, 0]
    return np.unique(keys, return_inverse=True)[1].reshape(-1)


def shown(items: Sequence[Any], progress: bool) -> Iterable[Any]:
    """Items with a progress bar over them, when asked and where tqdm is there."""
    if not progress:
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, unit="stripe", leave=False)


def assemble(tiles: Array, index: np.ndarray, counts: tuple[int, int], ns: tuple[int, int]) -> Array:
    """Tiles (T, R, t, t) in the order of `index` as one array (R, N1, N2); missing tiles are 0."""
    _, rows, size, _ = tiles.shape
    place = np.full(counts, 0, dtype=np.int64)
    place[index[:, 0], index[:, 1]] = np.arange(len(index))
    whole = jnp.moveaxis(tiles[place], 2, 0).swapaxes(2, 3)
    return whole.reshape(rows, counts[0] * size, counts[1] * size)[:, : ns[0], : ns[1]]


def mirrored(whole: Array, swap: np.ndarray, xp: Any) -> Array:
    """Symmetric kernels (R, N, N): a copy of what is above the diagonal below it, sites swapped; on it 0."""
    n = whole.shape[1]
    above = np.triu(np.ones((n, n), dtype=bool), 1)
    upper = xp.where(above, whole, 0)
    return upper + upper[swap].swapaxes(1, 2)


def upper(diagonal: Array, sites: int) -> Array:
    """Kernels of inputs with themselves (sites · sites, N), the pairs of sites below the diagonal copied from above."""
    source = np.arange(sites * sites).reshape(sites, sites)
    return diagonal[np.triu(source).reshape(-1) + np.tril(source.T, -1).reshape(-1)]
