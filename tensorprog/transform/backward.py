"""The backward pass of a program as instructions: vectors through Wᵀ, Nonlins with derivatives, gradients of Moments.

Of each vector y of a width n it has the cotangent dy = √n ∂f/∂y where f is a readout, n ∂f/∂y where f is a Moment:
coordinates of order 1. Of a scalar θ it has ∂f/∂θ where f is a Moment, ∂f/∂θ / √n where f is a readout.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any, assert_never

import jax.numpy as jnp
import numpy as np

from tensorprog.errors import Line, problem
from tensorprog.functions.frozen import Function, freeze
from tensorprog.functions.pullback import array_pullback, batched, pullback, scalar_pullback, slope
from tensorprog.gia import depends_on_average, is_average, reached
from tensorprog.ir import (
    BiasVector,
    Coef,
    DataScalar,
    Gather,
    Inner,
    InputVector,
    LinComb,
    MatMul,
    Moment,
    Nonlin,
    Num,
    ScalarFn,
    ScalarRef,
    ScalarType,
    Sites,
    SiteSum,
    VectorType,
    is_entries,
)
from tensorprog.tracing.values import Scalar, Vector, gather
from tensorprog.transform.replay import Replay, atom, expanded, reshaped, scalar_fn, scalar_of

_PRODUCT = freeze(operator.mul)[0]
_SELF = freeze(operator.pos)[0]

READOUT, AVERAGE = 1, 2
"""Powers of √n that a cotangent carries: of a readout's gradient, of a Moment's."""


class Backward:
    """The cotangents of one replay: `seeds` are those of its outputs, all with the same leading sites `lead`."""

    def __init__(self, replay: Replay, seeds: dict[int, Any], power: int, lead: Sites = ()):
        self.replay, self.structure, self.builder = replay, replay.structure, replay.builder
        self.power, self.lead = power, lead
        self.found: dict[int, Any] = {}
        self.needed = reached(self.structure, tuple(seeds))
        if power == READOUT:
            self._one_width()
        for position, seed in seeds.items():
            self.add(position, seed)

    def _one_width(self) -> None:
        """A scalar's cotangent has the scale of its width, so that scalars stay within one."""
        dims = {
            t.dim for p in self.needed if isinstance(t := self.structure.types[p], VectorType) and t.space == "wide"
        }
        averages = [p for p in self.needed if is_average(self.structure, p)]
        if averages and len(dims) > 1:
            names = ", ".join(sorted(map(str, dims)))
            raise self.problem(
                averages[0], f"a Moment in a program of several widths ({names}) under a readout",
                "give the widths one name, or return a Moment in place of the readout",
            )  # fmt: skip

    def problem(self, position: int, why: str, remedy: str) -> Exception:
        line: Line | None = self.structure.line(position)
        return problem(line, self.structure.names[position] or "an instruction", f"no backward pass: {why}", remedy)

    # ---- accumulation

    def add(self, position: int, cotangent: Any) -> None:
        """One consumer's contribution to a cotangent."""
        type_ = self.structure.types[position]
        if isinstance(type_, VectorType) and type_.space == "input":
            return
        cotangent = self.fitted(cotangent, type_.sites)
        before = self.found.get(position)
        self.found[position] = cotangent if before is None else before + cotangent

    def fitted(self, x: Any, sites: Sites) -> Any:
        """Summed over the sites that an operand was broadcast to."""
        start = len(self.lead)
        own = x.sites[start:]
        if own == sites:
            return x
        ones = (1,) * (len(own) - len(sites)) + tuple(sites)
        axes = tuple(start + i for i, (big, small) in enumerate(zip(own, ones, strict=True)) if big != small)
        return reshaped(summed(x, axes), (*self.lead, *sites))

    def run(self) -> dict[int, Any]:
        """The cotangent of every position that the outputs depend on."""
        before = self.builder.at
        for position in reversed(self.needed):
            if position in self.found:
                self.builder.at = self.structure.line(position) or before
                self.named(position)
                self.instruction(position, self.found[position])
        self.builder.at = before
        return self.found

    def named(self, position: int) -> None:
        """Call the cotangent of s1 ds1."""
        name, found = self.structure.names[position], self.found[position]
        type_ = self.structure.types[position]
        if name is None or (isinstance(type_, VectorType) and type_.space == "output"):
            return
        if isinstance(found, Scalar) and (found.coef.constant != 1.0 or len(found.coef.factors) != 1):
            return  # a product of scalars is no instruction yet
        self.replay.call(found, f"d{name}{self.replay.suffix}")

    # ---- rules

    def instruction(self, position: int, dy: Any) -> None:
        match self.structure.instructions[position]:
            case InputVector() | DataScalar() | BiasVector():
                return
            case MatMul(weight=weight, x=x, transposed=transposed, aspect=aspect):
                if self.structure.vector(x).space != "input" and not is_entries(self.structure, position):
                    product = self.replay.operators[weight].product(dy, not transposed, self.power - aspect)
                    self.add(x, product)
            case LinComb() as instruction:
                self.lincomb(position, instruction, dy)
            case Gather() as instruction:
                self.gather(instruction, dy)
            case SiteSum(x=x, axes=axes):
                sites = self.structure.vector(x).sites
                kept = tuple(1 if a in axes else s for a, s in enumerate(sites))
                self.add(x, expanded(reshaped(dy, (*self.lead, *kept)), (*self.lead, *sites)))
            case Nonlin(over=None) as instruction:
                self.nonlin(instruction, dy)
            case Nonlin() as instruction:
                self.nonlin_over(position, instruction, dy)
            case Moment(fn=fn, numbers=numbers, vectors=vectors, scalars=scalars):
                self.moment(fn, numbers, vectors, scalars, dy)
            case Inner(x=x, y=y, shared=shared):
                self.inner(x, y, shared, dy)
            case ScalarFn() as instruction:
                self.scalar_fn(instruction, dy)
            case _ as never:
                assert_never(never)

    def scalar(self, ref: ScalarRef) -> Scalar:
        return scalar_of(self.builder, ref) if isinstance(ref, Num) else self.replay.values[ref]

    def coef(self, coef: Coef) -> Scalar:
        product = Scalar(self.builder, Coef(coef.constant), ())
        for factor in coef.factors:
            product = product * self.scalar(factor)
        return product

    def lincomb(self, position: int, instruction: LinComb, dy: Vector) -> None:
        values = self.replay.values
        for coef, x in instruction.terms:
            self.add(x, dy * self.coef(coef))
        for coef, x in (*instruction.terms, *((c, None) for c in instruction.constants)):
            for k, factor in enumerate(coef.factors):
                if not isinstance(factor, int) or not self.is_average(factor):
                    continue
                if self.structure.vector(position).space == "output":
                    raise self.problem(
                        position, "an average over the width is added to a readout, or multiplies it",
                        "return the two as two outputs, or multiply the vector before it is read",
                    )  # fmt: skip
                rest = self.coef(Coef(coef.constant, coef.factors[:k] + coef.factors[k + 1 :]))
                along = self.average(_SELF, (), (dy,)) if x is None else self.average(_PRODUCT, (), (dy, values[x]))
                self.add(factor, along * rest)

    def is_average(self, position: int) -> bool:
        """Whether a scalar depends on a Moment, so that it has a gradient."""
        return depends_on_average(self.structure, position)

    def gather(self, instruction: Gather, dy: Vector) -> None:
        """Each place of an operand collects the sites that read it; the zero vector collects nothing."""
        source, offset = instruction.source.array.reshape(-1), 0
        for x in instruction.xs:
            sites = self.structure.vector(x).sites
            size = math.prod(sites)
            readers = [np.flatnonzero(source == offset + place) for place in range(size)]
            offset += size
            most = max(len(r) for r in readers)
            if most == 0:
                continue
            places = np.full((size, most), -1)
            for place, found in enumerate(readers):
                places[place, : len(found)] = found
            self.add(x, self.collected(dy, places, sites))

    def collected(self, dy: Vector, places: np.ndarray, sites: Sites) -> Vector:
        """Σ of dy over each row's places among its own sites laid end to end; -1 is no place, the zero vector."""
        batch, own = math.prod(self.lead), math.prod(dy.sites[len(self.lead) :])
        index = np.where(places < 0, -1, np.arange(batch)[:, None, None] * own + places)
        whole = (*self.lead, *sites, places.shape[1])
        text = f"scatter({{}}; {' × '.join(map(str, sites)) or '1'})"
        return summed(gather([dy], lambda _: index.reshape(whole), text), (len(whole) - 1,))

    # ---- functions

    def elementwise(self, fn: Function, numbers: Any, vectors: Sequence[Vector], scalars: Sequence[Scalar]) -> Vector:
        sites = np.broadcast_shapes(*(v.sites for v in (*vectors, *scalars)))
        refs = tuple(s.ref() for s in scalars)
        new = Nonlin(fn, tuple(numbers), tuple(v.position() for v in vectors), refs)
        return atom(self.builder, new, VectorType(sites, vectors[0].type.dim, "wide"))

    def average(self, fn: Function, numbers: Any, vectors: Sequence[Vector], scalars: Sequence[Scalar] = ()) -> Scalar:
        sites = np.broadcast_shapes(*(v.sites for v in (*vectors, *scalars)))
        refs = tuple(s.ref() for s in scalars)
        new = Moment(fn, tuple(numbers), tuple(v.position() for v in vectors), refs)
        return scalar_of(self.builder, self.builder.emit(new, ScalarType(sites)))

    def nonlin(self, instruction: Nonlin, dy: Vector) -> None:
        fn, numbers = instruction.fn, instruction.numbers
        vectors = [self.replay.values[v] for v in instruction.vectors]
        scalars = [self.scalar(s) for s in instruction.scalars]
        count = len(vectors) + len(scalars)
        for index, x in enumerate(instruction.vectors):
            if fn == _PRODUCT and count == 2 and len(vectors) == 2:
                self.add(x, self.elementwise(_PRODUCT, (), (dy, vectors[1 - index]), ()))
            else:
                self.add(x, self.elementwise(pullback(fn, index, count), numbers, (dy, *vectors), scalars))
        for index, ref in enumerate(instruction.scalars, start=len(vectors)):
            if isinstance(ref, int) and self.is_average(ref):
                self.add(ref, self.average(pullback(fn, index, count), numbers, (dy, *vectors), scalars))

    def nonlin_over(self, position: int, instruction: Nonlin, dy: Vector) -> None:
        """A function of whole site axes: dy and the arguments are given to its reverse pass in one shape."""
        over = instruction.over
        assert over is not None, "the function sees whole axes"
        refs = (*instruction.vectors, *instruction.scalars)
        sites = np.broadcast_shapes(*(self.structure.scalar_sites(r) for r in refs))
        shape = tuple(sites[a] for a in over)
        own = self.structure.vector(position).sites
        kept = len(own) == len(sites)
        result = tuple(own[a] for a in over) if kept else ()
        size = tuple(max(s, r) for s, r in zip(shape, result or shape, strict=True))
        wide = tuple(size[over.index(a)] if a in over else s for a, s in enumerate(sites))
        if not kept:
            dy = reshaped(dy, (*self.lead, *(1 if a in over else s for a, s in enumerate(sites))))
        dy = self.padded(dy, wide, len(self.lead), over)
        vectors = [self.padded(expanded(self.replay.values[v], sites), wide, 0, over) for v in instruction.vectors]
        scalars = [self.padded_scalar(self.scalar(s), sites, wide) for s in instruction.scalars]
        count = len(vectors) + len(scalars)
        axes = tuple(a + len(self.lead) for a in over)
        for index, ref in enumerate(refs):
            if isinstance(ref, Num) or (index >= len(vectors) and not self.is_average(ref)):
                continue
            fn = array_pullback(instruction.fn, index, count, shape, result, size)
            pulled = Nonlin(
                fn, instruction.numbers, (dy.position(), *(v.position() for v in vectors)),
                tuple(s.ref() for s in scalars), axes,
            )  # fmt: skip
            type_ = VectorType((*self.lead, *wide), dy.type.dim, "wide")
            back = atom(self.builder, pulled, type_)
            if wide != sites:
                back = back[(..., *(slice(0, s) for s in sites))]
            self.add(ref, back if index < len(vectors) else self.average(_SELF, (), (back,)))

    def padded(self, x: Vector, wide: Sites, start: int, over: tuple[int, ...]) -> Vector:
        """A vector with zeros behind it along the axes that a function sees, up to the size of `wide`."""
        for axis in over:
            missing = wide[axis] - x.sites[start + axis]
            if x.sites[start + axis] != 1 and missing:
                behind = [(0, missing if a == start + axis else 0) for a in range(len(x.sites))]
                x = gather([x], partial(np.pad, pad_width=behind, constant_values=-1), f"pad({{}}; {missing} behind)")
        return x

    def padded_scalar(self, x: Scalar, sites: Sites, wide: Sites) -> Scalar:
        if sites == wide:
            return x
        return scalar_fn(self.builder, partial(padded, sites=sites, wide=wide), x)

    def moment(self, fn: Function, numbers: Any, vectors: Any, scalars: Any, dy: Scalar) -> None:
        own = [self.replay.values[v] for v in vectors]
        refs = [self.scalar(s) for s in scalars]
        count = len(own) + len(refs)
        for index, x in enumerate(vectors):
            if fn == _PRODUCT and len(own) == 2 and not refs:
                self.add(x, own[1 - index] * dy)
            else:
                self.add(x, self.elementwise(slope(fn, index, count), numbers, own, refs) * dy)
        for index, ref in enumerate(scalars, start=len(own)):
            if isinstance(ref, int) and self.is_average(ref):
                self.add(ref, self.average(slope(fn, index, count), numbers, own, refs) * dy)

    def inner(self, x: int, y: int, shared: int, dy: Scalar) -> None:
        """S[h, i, j] = ⟨x[h, i], y[h, j]⟩/n."""
        left, right = (self.replay.values[v] for v in (x, y))
        if left.type.space == "input":
            return
        start, here, there = len(self.lead) + shared, len(left.sites) - shared, len(right.sites) - shared
        row = reshaped(right, (*right.sites[:shared], *(1,) * here, *right.sites[shared:]))
        self.add(x, summed(row * dy, tuple(range(start + here, start + here + there))))
        column = reshaped(left, (*left.sites, *(1,) * there))
        self.add(y, summed(column * dy, tuple(range(start, start + here))))

    def scalar_fn(self, instruction: ScalarFn, dy: Scalar) -> None:
        refs = [self.scalar(s) for s in instruction.scalars]
        for index, ref in enumerate(instruction.scalars):
            if isinstance(ref, int) and self.is_average(ref):
                fn = scalar_pullback(instruction.fn, index, len(refs))
                for _ in self.lead:
                    fn = batched(fn, (True, *(False for _ in refs)))
                self.add(ref, scalar_fn(self.builder, fn, dy, *refs, numbers=instruction.numbers))


def padded(x: Any, sites: Sites, wide: Sites) -> Any:
    return jnp.pad(jnp.broadcast_to(x, sites), [(0, w - s) for s, w in zip(sites, wide, strict=True)])


def total(x: Any, axes: tuple[int, ...]) -> Any:
    return jnp.sum(x, axis=axes)


def summed(x: Any, axes: tuple[int, ...]) -> Any:
    """Σ over sites of a vector or a scalar."""
    if not axes:
        return x
    if isinstance(x, Scalar):
        return scalar_fn(x.builder, partial(total, axes=axes), x)
    if all(x.sites[a] == 1 for a in axes):
        return reshaped(x, tuple(s for a, s in enumerate(x.sites) if a not in axes))
    type_ = VectorType(tuple(s for a, s in enumerate(x.sites) if a not in axes), x.type.dim, x.type.space)
    return atom(x.builder, SiteSum(x.position(), axes), type_)
