"""Linear forms: what a vector is in terms of atoms, and which atoms are Gaussian.

At each of its sites a vector is Σ coef · atom[site] + constant. Atoms are the results of MatMul, biases, inputs and the
outputs of Nonlins; a sum that has a name is kept whole, so that a residual stream stays a chain. Coefficients are
monomials in the program's numbers, known by their position in a registry and evaluated when the kernel is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import mul
from typing import Any, assert_never

import jax.numpy as jnp
import numpy as np

from tensorprog.errors import ProgramError, problem
from tensorprog.functions.degree import coefficients, degree
from tensorprog.functions.frozen import Function
from tensorprog.ir import (
    BiasVector,
    Coef,
    DataScalar,
    Dim,
    Gather,
    Inner,
    InputVector,
    Instruction,
    LinComb,
    MatMul,
    Moment,
    Nonlin,
    Num,
    ScalarFn,
    ScalarResult,
    ScalarType,
    Sites,
    SiteSum,
    Structure,
    VectorType,
    operands,
)
from tensorprog.show import Printer

Ids = Any
"""A registry position, or an int array of them over sites."""


def elementwise(function: Callable[[int, int], int], left: Ids, right: Ids) -> np.ndarray:
    """function(left, right) of broadcast arrays of registry positions, called once for each pair that occurs."""
    left, right = np.broadcast_arrays(left, right)
    if left.size == 0:
        return np.zeros(left.shape, dtype=np.int64)
    if (left == left.flat[0]).all() and (right == right.flat[0]).all():
        return np.full(left.shape, function(int(left.flat[0]), int(right.flat[0])), dtype=np.int64)
    base = int(right.max()) + 1
    pairs, inverse = np.unique(left.astype(np.int64) * base + right, return_inverse=True)
    found = [function(int(pair // base), int(pair % base)) for pair in pairs]
    return np.array(found, dtype=np.int64)[inverse].reshape(left.shape)


class Monomials:
    """A registry of monomials constant · Π numbers; position 0 is the number 0, position 1 the number 1."""

    def __init__(self) -> None:
        self.entries: list[tuple[float, tuple[tuple[int, int, int], ...]]] = []
        self.known: dict[Any, int] = {}
        self.products: dict[tuple[int, int], int] = {}
        self.placed: dict[Any, tuple[list[int], np.ndarray, np.ndarray, np.ndarray]] = {}
        self.zero, self.one = self.add(0.0, ()), self.add(1.0, ())

    def add(self, constant: float, factors: tuple[tuple[int, int, int], ...]) -> int:
        """The position of a monomial; factors are (leaf, element, power) triples."""
        entry = (constant, tuple(sorted(factors)) if constant else ())
        if entry not in self.known:
            self.known[entry] = len(self.entries)
            self.entries.append(entry)
        return self.known[entry]

    def multiply(self, left: int, right: int) -> int:
        if left == 1 or right == 0:
            return right
        if right == 1 or left == 0:
            return left
        key = (left, right) if left <= right else (right, left)
        if key not in self.products:
            (a, f), (b, g) = self.entries[left], self.entries[right]
            self.products[key] = self.add(a * b, f + g)
        return self.products[key]

    def times(self, left: Ids, right: Ids) -> Ids:
        """Products of positions, elementwise where they are arrays."""
        if np.ndim(left) == 0 and np.ndim(right) == 0:
            return self.multiply(int(left), int(right))
        return elementwise(self.multiply, left, right)

    def values(self, leaves: Sequence[Any], dtype: Any, xp: Any = jnp) -> Any:
        """All monomials' values, one array; with `xp=np` where all leaves are known."""
        used, constants, above, below = self.factors(tuple(np.shape(leaf) for leaf in leaves))
        flat = xp.concatenate([xp.ones(1, dtype), *(xp.asarray(leaves[leaf], dtype).reshape(-1) for leaf in used)])
        product = lambda factors: reduce(mul, (factors[:, k] for k in range(factors.shape[1])), 1.0)
        values = xp.asarray(constants, dtype) * product(flat[above])
        return values / product(flat[below]) if below.shape[1] else values

    def factors(self, shapes: tuple[tuple[int, ...], ...]) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
        """The leaves that enter, constants, and places of factors and divisors in the leaves' numbers behind a 1."""
        if (len(self.entries), shapes) not in self.placed:
            used = sorted({leaf for _, own in self.entries for leaf, _, _ in own})
            starts = dict(zip(used, np.cumsum([1, *(math.prod(shapes[leaf]) for leaf in used)]).tolist(), strict=False))

            def factors(power: int) -> np.ndarray:
                rows = [[starts[leaf] + element for leaf, element, p in f if p == power] for _, f in self.entries]
                longest = max((len(row) for row in rows), default=0)
                return np.array([row + [0] * (longest - len(row)) for row in rows], dtype=np.int32)

            constants = np.array([constant for constant, _ in self.entries])
            self.placed = {(len(self.entries), shapes): (used, constants, factors(1), factors(-1))}
        return self.placed[len(self.entries), shapes]


@dataclass(frozen=True)
class Term:
    """coef · atom at given sites: `sites` and `coef` are (P, r), summed over r; `atom` is an instruction's position.

    An atom that is `opened` is taken by what defines it (a matrix product, a bias); another by its own moments.
    """

    atom: int
    sites: np.ndarray
    coef: Ids
    opened: bool


@dataclass(frozen=True)
class Facts:
    """What is known of a vector from its history.

    `scaled`: scalars of the program (Moments, data) multiply its terms, down to the next named vector; `moving`: they
    are in the constant part of a Gaussian. `innovation`: the random thing that an atom is made of.
    """

    gaussian: bool
    sources: frozenset[tuple[str, int]]
    depth: int
    scaled: bool = False
    moving: bool = False
    innovation: frozenset[tuple[str, int]] = frozenset()


class Linear:
    """Linear forms of a program's vectors."""

    def __init__(self, structure: Structure):
        self.structure = structure
        self.instructions: list[Instruction] = list(structure.instructions)
        self.types = list(structure.types)
        self.monomials = Monomials()
        self.sums: dict[tuple[LinComb, Sites], int] = {}
        self.arrays: dict[Sites, list[int]] = {}
        self.facts: dict[int, Facts] = {}
        for position in range(len(self.instructions)):
            self._affine(position)
            self.facts[position] = self._facts(position)

    def _affine(self, position: int) -> None:
        """A Nonlin that is affine in its vectors, given its scalars, is a sum with scalar coefficients."""
        instruction = self.instructions[position]
        if not isinstance(instruction, Nonlin) or instruction.over is not None or instruction.numbers:
            return
        vectors, scalars = instruction.vectors, instruction.scalars
        if all(isinstance(s, Num) for s in scalars) or degree(instruction.fn, len(vectors), len(scalars), ()) != 1:
            return
        sites = np.broadcast_shapes(*(self.structure.scalar_sites(s) for s in scalars))
        slopes, offset = coefficients(instruction.fn, len(vectors))

        def scalar(fn: Function) -> Coef:
            self.instructions.append(ScalarFn(fn, (), scalars))
            self.types.append(ScalarType(sites))
            self.facts[len(self.types) - 1] = self._facts(len(self.types) - 1)
            return Coef(1.0, (len(self.types) - 1,))

        terms = tuple((scalar(fn), x) for fn, x in zip(slopes, vectors, strict=True))
        self.instructions[position] = LinComb(terms, (scalar(offset),))

    # ---- facts about a vector

    def sites(self, position: int) -> Sites:
        return self.types[position].sites

    def size(self, position: int) -> int:
        return math.prod(self.sites(position))

    def boundary(self, position: int) -> bool:
        """Whether moments with this vector are equations of their own: Nonlins, and what has a name."""
        if position >= len(self.structure.names):
            return True
        return isinstance(self.instructions[position], Nonlin) or self.structure.names[position] is not None

    def synthetic(self, together: LinComb, sites: Sites) -> int:
        """A sum that the program does not have by itself: the Gaussian part of a sum that a Nonlin reads."""
        if len(together.terms) == 1 and together.terms[0][0].is_one and self.sites(together.terms[0][1]) == sites:
            return together.terms[0][1]
        key = (together, sites)
        if key not in self.sums:
            first = self.types[together.terms[0][1]]
            assert isinstance(first, VectorType), "a sum is of vectors"
            self.sums[key] = len(self.instructions)
            self.instructions.append(together)
            self.types.append(VectorType(sites, first.dim, first.space))
            self.facts[self.sums[key]] = self._facts(self.sums[key])
        return self.sums[key]

    def nothing(self, like: int) -> int:
        """The zero vector, as a Gaussian: what a padded place holds."""
        first = self.types[like]
        assert isinstance(first, VectorType), "only vectors are padded"
        key = (LinComb(()), (0,))
        if key not in self.sums:
            self.sums[key] = len(self.instructions)
            self.instructions.append(LinComb(()))
            self.types.append(VectorType((), first.dim, first.space))
            self.facts[self.sums[key]] = self._facts(self.sums[key])
        return self.sums[key]

    def gaussian(self, position: int) -> bool:
        """Whether the vector is Gaussian plus a constant: no Nonlin before the next matrix."""
        return self.facts[position].gaussian

    def nonlinear(self, position: int) -> bool:
        return isinstance(self.instructions[position], Nonlin)

    def sources(self, position: int) -> frozenset[tuple[str, int]]:
        """The random things in a vector's history."""
        return self.facts[position].sources

    def innovation(self, position: int) -> frozenset[tuple[str, int]]:
        """The random thing that an atom is made of: independent of all that does not contain it."""
        return self.facts[position].innovation

    def depth(self, position: int) -> int:
        """How many equations deep a vector lies: boundaries and matrices on the longest way down."""
        return self.facts[position].depth

    def scaled(self, position: int) -> bool:
        """Whether scalars of the program multiply the vector's terms."""
        return self.facts[position].scaled

    def moving(self, position: int) -> bool:
        """Whether the constant part of a Gaussian depends on the input."""
        return self.facts[position].moving

    def _facts(self, position: int) -> Facts:
        instruction = self.instructions[position]
        below = [self.facts[x] for x in operands(instruction)]
        sources = frozenset().union(*(f.sources for f in below))
        depth = max((f.depth for f in below), default=0) + self.boundary(position)
        match instruction:
            case MatMul(weight=weight):
                own = frozenset({("weight", weight)})
                return Facts(True, sources | own, depth + 1, innovation=own)
            case BiasVector(bias=bias):
                own = frozenset({("bias", bias)})
                return Facts(True, own, depth, innovation=own)
            case InputVector():
                return Facts(True, sources, depth)
            case LinComb(terms=terms, constants=constants):
                parts = [x for _, x in terms]
                factors = [any(isinstance(f, int) for f in c.factors) for c in (*(c for c, _ in terms), *constants)]
                return self._linear_facts(parts, sources, depth, any(factors), any(factors[len(terms) :]))
            case Gather(xs=xs):
                return self._linear_facts(list(xs), sources, depth, False, False)
            case SiteSum(x=x):
                return self._linear_facts([x], sources, depth, False, False)
            case Nonlin() | Moment() | Inner() | ScalarFn() | DataScalar():
                return Facts(False, sources, depth)
            case _ as never:
                assert_never(never)

    def _linear_facts(
        self, parts: list[int], sources: frozenset[tuple[str, int]], depth: int, own: bool, shifted: bool
    ) -> Facts:
        facts = [self.facts[x] for x in parts]
        gaussian = all(f.gaussian for f in facts)
        # Scalars count where they are met on the way down to the next name, and so does a mean that moves.
        scaled = own or any(f.moving or (f.scaled and not self.boundary(x)) for f, x in zip(facts, parts, strict=True))
        moving = gaussian and (shifted or any(f.moving for f in facts) or (own and any(map(self.shifted, parts))))
        return Facts(gaussian, sources, depth, scaled, moving)

    def shifted(self, position: int) -> bool:
        """Whether a Gaussian has a constant part somewhere."""
        return self.gaussian(position) and (
            self.moving(position) or bool(self.constant(position, np.arange(self.size(position))[:, None]))
        )

    # ---- coefficients

    def coef(self, coef: Coef, sites: Sites) -> Ids:
        """The registry positions of a coefficient without its scalars: one, or one for each flat site."""
        constant = self.monomials.add(coef.constant, ())
        for factor in coef.factors:
            if isinstance(factor, Num):
                constant = self.monomials.times(constant, self.number(factor, sites))
        return constant

    def number(self, num: Num, sites: Sites) -> Ids:
        """A number's registry positions, broadcast over sites when it is an array."""
        shape = self.structure.number_sites[num.index]
        if not shape:
            return self.monomials.add(1.0, ((num.index, 0, 1),))
        ids = [self.monomials.add(1.0, ((num.index, i, 1),)) for i in range(math.prod(shape))]
        return np.broadcast_to(np.array(ids).reshape(shape), sites).reshape(-1)

    def held(self, num: Num) -> tuple[int, Sites]:
        """A number that a function holds, and its shape: a monomial, or of an array its place among those of its shape.

        Arrays are numbers as a whole: a table of a thousand entries is no thousand numbers.
        """
        shape = self.structure.number_sites[num.index]
        if not shape:
            return int(self.number(num, ())), shape
        known = self.arrays.setdefault(shape, [])
        if num.index not in known:
            known.append(num.index)
        return known.index(num.index), shape

    def array_values(self, leaves: Sequence[Any], dtype: Any, xp: Any = jnp) -> dict[Sites, Any]:
        """The arrays that functions hold, by shape, along a first axis."""
        return {
            shape: xp.stack([xp.asarray(leaves[index], dtype) for index in known])
            for shape, known in self.arrays.items()
        }

    def ratio(self, rows: Dim, cols: Dim) -> int:
        """rows/cols of a transpose: Wᵀ's entries have variance var/cols, and its rows have length rows."""
        nums = dict(self.structure.widths)
        if rows == cols:
            return self.monomials.one
        return self.monomials.add(1.0, ((nums[str(rows)].index, 0, 1), (nums[str(cols)].index, 0, -1)))

    def refuse(self, position: int, why: str, remedy: str, kind: type[ProgramError] = ProgramError) -> ProgramError:
        printer = Printer(self.structure, [None] * len(self.structure.numbers))
        text = printer.expression(position, top=self.structure.names[position] is None)
        return problem(self.structure.line(position), text, why, remedy, kind)

    # ---- the forms

    def broadcast(self, position: int, sites: Sites) -> np.ndarray:
        """Flat sites of a vector as they broadcast to a larger shape."""
        own = self.sites(position)
        return np.broadcast_to(np.arange(math.prod(own)).reshape(own), sites).reshape(-1)

    def form(self, position: int, sites: np.ndarray, coef: Ids = 1, *, top: bool = True) -> list[Term]:
        """The linear form of a vector at flat sites (P, r); `top` opens the vector itself though it has a name."""
        if ((self.boundary(position) or self.scaled(position)) and not top) or self.nonlinear(position):
            return [Term(position, sites, coef, opened=False)]
        match self.instructions[position]:
            case InputVector() | BiasVector() | MatMul():
                return [Term(position, sites, coef, opened=True)]
            case LinComb(terms=terms):
                shape = self.sites(position)
                result = []
                for own, x in terms:
                    ids = self.coef(own, shape)
                    ids = ids if np.ndim(ids) == 0 else ids[sites]
                    below = self.broadcast(x, shape)[sites]
                    result += self.form(x, below, self.monomials.times(coef, ids), top=False)
                return result
            case Gather(xs=xs, source=source):
                result = []
                for x, own, ids in self.read(xs, source.array.reshape(-1)[sites], coef):
                    result += self.form(x, own, ids, top=False)
                return result
            case SiteSum(x=x, axes=axes):
                below, wide = self.summed(position, x, axes, sites, coef)
                return self.form(x, below, wide, top=False)
            case DataScalar() | Nonlin() | ScalarResult():
                raise AssertionError(f"instruction {position} is not linear")
            case never:
                assert_never(never)

    def constant(self, position: int, sites: np.ndarray, coef: Ids = 1, *, top: bool = True) -> list[Ids]:
        """Monomials whose sum is the constant part of the form at flat sites (P, r), to be summed over r."""
        if (self.boundary(position) or self.scaled(position)) and not top and not self.gaussian(position):
            return []
        match self.instructions[position]:
            case BiasVector(bias=bias):
                mean = self.structure.biases[bias].mean
                return [] if mean is None else [self.monomials.times(coef, self.number(mean, ()))]
            case LinComb(terms=terms, constants=constants):
                shape = self.sites(position)

                def here(own: Coef) -> Ids:
                    ids = self.coef(own, shape)
                    return self.monomials.times(coef, ids if np.ndim(ids) == 0 else ids[sites])

                result = [here(own) for own in constants]
                for own, x in terms:
                    result += self.constant(x, self.broadcast(x, shape)[sites], here(own), top=False)
                return result
            case Gather(xs=xs, source=source):
                result = []
                for x, own, ids in self.read(xs, source.array.reshape(-1)[sites], coef):
                    result += self.constant(x, own, ids, top=False)
                return result
            case SiteSum(x=x, axes=axes):
                below, wide = self.summed(position, x, axes, sites, coef)
                count = self.monomials.add(float(below.shape[1] // sites.shape[1]), ())
                found = self.constant(x, below, wide, top=False)
                return [self.monomials.times(m, count) if np.ndim(m) == 0 else m for m in found]  # equal at all sites
            case InputVector() | DataScalar() | MatMul() | Nonlin() | ScalarResult():
                return []
            case never:
                assert_never(never)

    def read(self, xs: tuple[int, ...], source: np.ndarray, coef: Ids) -> Iterator[tuple[int, np.ndarray, Ids]]:
        """Of vectors laid end to end, each that is read at (P, r) places: its own sites and coefficients there.

        Where a place is another vector's the coefficient is 0; columns that are another's for all P are left out.
        """
        for x, mine, own in self.parts(xs, source):
            if mine.all():
                yield x, own, coef
                continue
            columns = mine.any(axis=0)
            ids = np.where(mine, coef, self.monomials.zero)
            yield x, own[:, columns], ids[:, columns]

    def parts(self, xs: tuple[int, ...], source: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Of vectors laid end to end: each one that is read, where it is read, and its own flat sites there."""
        parts, offset = [], 0
        for x in xs:
            mine = (source >= offset) & (source < offset + self.size(x))
            if mine.any():
                parts.append((x, mine, np.where(mine, source - offset, 0)))
            offset += self.size(x)
        return parts

    def summed(
        self, position: int, x: int, axes: tuple[int, ...], sites: np.ndarray, coef: Ids
    ) -> tuple[np.ndarray, Ids]:
        """The flat sites that a sum over site axes reads, along r, with their coefficients."""
        index = np.arange(self.size(x)).reshape(self.sites(x))
        kept = [a for a in range(index.ndim) if a not in axes]
        summed = index.transpose(*kept, *axes).reshape(self.size(position), -1)
        wide = np.repeat(np.broadcast_to(coef, sites.shape), summed.shape[1], axis=-1) if np.ndim(coef) else coef
        return summed[sites].reshape(sites.shape[0], -1), wide
