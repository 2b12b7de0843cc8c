"""Kernels of known inputs, put together on the host from stripes: one copy of each entry, one of its mirror image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from tensorprog import stripes, tiles
from tensorprog.interpret.buffers import Alone, Buffer, stated
from tensorprog.interpret.system import Moments, Numbers, Stage
from tensorprog.stripes import Asked

Found = TypeVar("Found")
NAMES = ("value", "tangent", "error", "tangent_error")
ALIGNED = 64
"""Bytes from which on XLA's CPU client takes NumPy's memory as it is."""


class Grid:
    """All pairs of x1 and x2, of x1 with itself where x2 is None, by stripes."""

    def __init__(self, asked: Asked, leaves: Any, weights: Any, x1: Any, x2: Any):
        assert isinstance(asked.m, Moments), "whose moments they are"
        self.m, self.alone = asked.m, x2 is None
        # What is split by parameter is differentiated in the weights, and needs to know what these are of.
        self.asked = asked if asked.split else replace(asked, m=Stage.of(asked.m))
        self.symmetric = self.alone and all(u == v for u, v in self.m.targets)
        self.labels = tiles.labels(x1, x1 if self.alone else x2)
        one, two = self.labels
        self.alike = bool(np.isin(one, two).any())
        self.last: tuple[Any, tuple[np.ndarray, ...]] = None, ()
        self.n1, self.n2 = map(len, self.labels)
        self.costly = stripes.is_costly(self.m)
        shape = stripes.shape(self.m) if x1 else stripes.Shape(1, 1)
        self.block, self.size = shape
        self.at_once = stripes.at_once(self.m, shape)
        self.one = tiles.panels(x1, self.size)
        self.two = self.one if self.alone else tiles.panels(x2, self.size)
        self.dtype = x1[0].dtype if x1 else jnp.result_type(float)
        self.weights = np.asarray(weights, self.dtype)
        self.leaves = leaves
        self.numbers = self.known_numbers({})

    def known_numbers(self, more: dict[tuple[int, ...], Any]) -> Numbers:
        """The program's numbers, with more arrays that functions hold."""
        found = Numbers.known(self.m, self.leaves, self.weights, self.dtype)
        return replace(found, arrays=found.arrays | more, seeds=None if self.asked.split else found.seeds)

    def run(self, progress: bool) -> tuple[list[dict[str, Any]], tuple[Alone, ...]]:
        """Every target's quantities, (N1, N2, *S_u, *S_v), and what is known of the inputs of each side."""
        left, right = self.panels()
        exact = self.joined([buffer for _, buffer in left]) if self.alike else [None] * len(NAMES)
        whole = [self.empty(k) for k in range(len(self.m.targets))]
        pairs = [(i, j) for i in range(len(left)) for j in range(i if self.symmetric else 0, len(right))]
        calls = (lambda i=i, j=j: self.stripe(i, j, left[i][0], right[j][0]) for i, j in pairs)
        for (i, j), returned in zip(tiles.shown(pairs, progress), ahead(calls)):
            found = self.settled(i, j, returned, left[i][0], right[j][0])
            for name, part, itself in zip(NAMES, fields(found), exact, strict=True):
                for k, target in enumerate(whole):
                    if target[name] is not None:
                        self.put(target[name], part, itself, k, i, j)
        sides = (self.known(left, self.n1), *(() if self.alone else (self.known(right, self.n2),)))
        return [self.shaped(target, k) for k, target in enumerate(whole)], sides

    def panels(self) -> tuple[list[Any], list[Any]]:
        """What is known of the inputs of each side, panel by panel."""
        left = [self.panel(x, n, self.alike) for x, n in zip(self.one, self.counts(self.n1), strict=True)]
        right = left if self.alone else [self.panel(x, n, False) for x, n in zip(self.two, self.counts(self.n2))]
        return left, right

    def settled(self, i: int, j: int, found: Buffer | None, left: Alone, right: Alone) -> Buffer | None:
        """What a stripe returned, or what somebody who looked at it put in its place."""
        return found

    def counts(self, n: int) -> list[int]:
        """Inputs of each panel."""
        return [min(self.size, n - start) for start in range(0, n, self.size)]

    def panel(self, x: Any, count: int, diagonal: bool) -> tuple[Alone, Buffer | None]:
        """What is known of each of `count` inputs, and the pairs of each with itself."""
        blocks = np.int32(-(-count // self.at_once))
        return stripes.panel(self.asked, self.at_once, self.numbers, self.weights, x, blocks, diagonal=diagonal)

    def stripe(self, i: int, j: int, left: Alone, right: Alone) -> Buffer | None:
        """Panel i of x1 with panel j of x2; None where no pair is wanted."""
        wanted = self.wanted(i, j)
        filled, count = places(wanted, self.block)
        if not count:
            return None
        return stripes.stripe(
            self.asked, self.block, self.numbers, self.weights, self.one[i], self.two[j], left, right,
            wanted if self.costly else None, filled, count,
        )  # fmt: skip

    def wanted(self, i: int, j: int) -> np.ndarray:
        """Which pairs of two panels are computed: of real examples, above the diagonal when symmetric, not of equal
        inputs."""
        rows, columns = (k * self.size + np.arange(self.size) for k in (i, j))
        inside = (rows < self.n1)[:, None] & (columns < self.n2)
        if self.symmetric:
            inside &= rows[:, None] < columns
        a, b = self.equal(i, j)
        inside[a, b] = False
        return inside

    def equal(self, i: int, j: int) -> tuple[np.ndarray, ...]:
        """Where the inputs of two panels are equal, kept for the pair of panels last asked for."""
        if self.last[0] != (i, j):
            rows, columns = (own[k * self.size : (k + 1) * self.size] for own, k in zip(self.labels, (i, j)))
            known = self.alike and ((self.alone and i == j) or bool(np.isin(rows, columns).any()))
            none = np.zeros(0, int)
            self.last = (i, j), np.nonzero(rows[:, None] == columns) if known else (none, none)
        return self.last[1]

    def joined(self, parts: list[Any]) -> list[Any]:
        """The kernel of each input with itself, (cells, N1)."""
        return [
            None if own[0] is None else np.concatenate([np.asarray(a) for a in own], axis=-1)[..., : self.n1]
            for own in zip(*map(fields, parts), strict=True)
        ]

    def known(self, panels: list[Any], n: int) -> Alone:
        """Same-input cells of a side's inputs, (1, cells, N)."""
        values = np.concatenate([np.asarray(alone.value) for alone, _ in panels], axis=1)[:, :n]
        made: Any = values[None]
        return Alone(made, None, [])

    def empty(self, k: int) -> dict[str, Any]:
        """Arrays (N1, N2, cells) for a target's quantities; tangents (P, N1, N2, cells) where they are split."""
        asked, shape = self.asked, (self.n1, self.n2, len(self.m.cells[k]))
        tangents = (len(self.weights), *shape) if asked.split else shape
        tangent, error = asked.tangent or asked.split, asked.error and not asked.split
        made = (shape, tangents if tangent else None, shape if error else None, tangents if tangent and error else None)
        return {name: own and _aligned(own, self.dtype) for name, own in zip(NAMES, made, strict=True)}

    def put(self, whole: Any, part: Any, exact: Any, k: int, i: int, j: int) -> None:
        """One quantity of two panels, (cells, panel, panel), in its place and its mirror image's."""
        if whole.ndim == 4:
            for p, own in enumerate(whole):
                self.put(own, None if part is None else part[p], None if exact is None else exact[p], k, i, j)
            return
        cells = self.m.cross.kept(self.m.cells[k])
        rows, columns = (slice(p * self.size, (p + 1) * self.size) for p in (i, j))
        n1, n2 = whole[rows, columns].shape[:2]
        own: Any = (
            np.zeros((len(cells), n1, n2), whole.dtype) if part is None else np.asarray(part)[_run(cells), :n1, :n2]
        )
        half = round(len(cells) ** 0.5)
        swap = np.arange(len(cells)).reshape(half, half).T.reshape(-1) if self.symmetric else None
        if swap is not None and i == j:
            own = tiles.mirrored(own, swap, np)
        a, b = self.equal(i, j)
        if len(a):
            itself = tiles.upper(exact[cells], half) if self.symmetric else exact[cells]
            own = own if own.flags.writeable else own.copy()
            own[:, a, b] = itself[:, self.first()[rows][a]]
        whole[rows, columns] = np.moveaxis(own, 0, -1)
        if swap is not None and i != j:
            whole[columns, rows] = own[_run(swap)].transpose(2, 1, 0)

    def first(self) -> np.ndarray:
        """The first row of x1 that is equal to each, so that the kernel of equal ones is one number."""
        if not self.alone:
            return np.arange(self.n1)
        _, index, inverse = np.unique(self.labels[0], return_index=True, return_inverse=True)
        return index[inverse.reshape(-1)]

    def shaped(self, target: dict[str, Any], k: int) -> dict[str, Any]:
        """Quantities as users are given them, with the axes of sites; without those of inputs where there are none."""
        sites, result = self.m.shape(k), {}
        for name, a in target.items():
            lead = () if a is None else a.shape[:-1] if self.one[0] else a.shape[:-3]
            result[name] = None if a is None else a.reshape((*lead, *sites))
        for name, bound in (("value", "error"), ("tangent", "tangent_error")):
            if result[bound] is not None:
                result[bound] = stated(result[name], result[bound])
        return result


def places(wanted: np.ndarray, block: int) -> tuple[np.ndarray, np.int32]:
    """The blocks of two panels that hold a pair that is wanted, filled up, and how many they are."""
    blocks = len(wanted) // block
    found = np.argwhere(wanted.reshape(blocks, block, blocks, block).any((1, 3))).astype(np.int32)
    filled = np.zeros((blocks**2, 2), np.int32)
    filled[: len(found)] = found
    return filled, np.int32(len(found))


def ahead(calls: Iterable[Callable[[], Found]]) -> Iterator[Found]:
    """What the calls return, each made while the one before is at work."""
    before: list[Found] = []
    for call in calls:
        before.append(call())
        if len(before) > 1:
            yield before.pop(0)
    yield from before


def fields(buffer: Buffer | None) -> tuple[Any, Any, Any, Any]:
    if buffer is None:
        return None, None, None, None
    return buffer.value, buffer.tangent, buffer.error, buffer.tangent_error


def _run(index: np.ndarray) -> Any:
    """An index, as a slice where it runs on: a view in place of a copy."""
    return slice(index[0], index[-1] + 1) if len(index) and (np.diff(index) == 1).all() else index


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros where JAX need not copy them."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.zeros(size + ALIGNED, np.uint8)
    start = -memory.ctypes.data % ALIGNED
    return memory[start : start + size].view(dtype).reshape(shape)
