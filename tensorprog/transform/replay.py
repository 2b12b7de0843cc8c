"""A program run on traced values: the same instructions again, over other inputs, weights or one more site axis.

Transforms write programs the way users do, with traced vectors and scalars. A replay is their forward pass. With a
`lead` every vector that depends on an input gets leading site axes, one program for a batch of examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, assert_never

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.functions.frozen import Function, freeze
from tensorprog.functions.pullback import batched
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
    Structure,
    VectorType,
)
from tensorprog.tracing.builder import Builder
from tensorprog.tracing.values import Scalar, Vector, gather, repeated


class Operator:
    """A weight as the linear map of a replay."""

    def __init__(self, builder: Builder, index: int):
        self.builder, self.index = builder, index

    def product(self, x: Vector, transposed: bool, aspect: int = 0) -> Vector:
        """W x or Wᵀ x."""
        weight = self.builder.weights[self.index]
        dim = weight.cols if transposed else weight.rows
        sites = (*x.sites, *weight.window) if transposed else x.sites[: len(x.sites) - len(weight.window)]
        type_ = VectorType(sites, dim, "output" if isinstance(dim, int) else "wide")
        return atom(self.builder, MatMul(self.index, x.position(), transposed, aspect), type_)


def atom(builder: Builder, instruction: Any, type_: VectorType) -> Vector:
    """One instruction as a vector."""
    return Vector(builder, type_, ((Coef(), builder.emit(instruction, type_)),))


def scalar_of(builder: Builder, ref: ScalarRef) -> Scalar:
    """One operand as a scalar."""
    return Scalar(builder, Coef(1.0, (ref,)), builder.scalar_sites(ref))


def scalar_fn(builder: Builder, fn: Callable[..., Any] | Function, *scalars: Scalar, numbers: Any = ()) -> Scalar:
    """A function of scalars' whole arrays."""
    frozen = fn if isinstance(fn, Function) else freeze(fn)[0]
    dtype = jnp.result_type(float)
    shapes = [jax.ShapeDtypeStruct(s.sites, dtype) for s in scalars]
    held = tuple(jax.ShapeDtypeStruct(builder.scalar_sites(n), dtype) for n in numbers)
    sites = jax.eval_shape(lambda args, nums: jnp.asarray(frozen(*args, numbers=nums)), shapes, held).shape
    instruction = ScalarFn(frozen, tuple(numbers), tuple(s.ref() for s in scalars))
    return scalar_of(builder, builder.emit(instruction, ScalarType(sites)))


def reshaped(x: Any, sites: Sites) -> Any:
    """A vector or scalar with other sites of the same size."""
    if x.sites == sites:
        return x
    if isinstance(x, Vector):
        return gather([x], lambda source: source.reshape(sites), f"reshape({{}}; {' × '.join(map(str, sites))})")
    return scalar_fn(x.builder, partial(jnp.reshape, shape=sites), x)


def expanded(x: Any, sites: Sites) -> Any:
    """A vector or scalar broadcast to more sites."""
    if x.sites == sites:
        return x
    if isinstance(x, Scalar):
        return scalar_fn(x.builder, partial(jnp.broadcast_to, shape=sites), x)
    return repeated(x, sites)


class Replay:
    """The values of a program's instructions, written into a builder."""

    def __init__(
        self,
        structure: Structure,
        builder: Builder,
        inputs: Sequence[Vector | Scalar],
        operators: Mapping[int, Operator] | None = None,
        *,
        lead: Sites = (),
        suffix: str = "",
        biases: Mapping[int, Vector] | None = None,
    ):
        self.structure, self.builder, self.inputs, self.lead, self.suffix = structure, builder, inputs, lead, suffix
        self.operators = operators or {i: Operator(builder, i) for i in range(len(structure.weights))}
        self.biases = biases or {}
        self.values: dict[int, Any] = {}
        self.leads: dict[int, bool] = {}

    def run(self, positions: Sequence[int]) -> dict[int, Any]:
        """The values of the given positions, which are in order and hold all that they need."""
        before = self.builder.at
        for position in positions:
            self.builder.at = self.structure.line(position) or before
            value, self.leads[position] = self.instruction(position)
            self.values[position] = value
            name = self.structure.names[position]
            if name is not None:
                self.call(value, name + self.suffix)
        self.builder.at = before
        return self.values

    def call(self, value: Any, name: str) -> None:
        """Give a value the name that it has in the original."""
        ref = value.position() if isinstance(value, Vector) else value.ref()
        if isinstance(ref, int) and self.builder.names[ref] is None and name not in self.builder.names:
            self.builder.names[ref] = name

    # ---- operands with a lead

    def led(self, position: int, rank: int) -> Any:
        """A value whose sites stand right under those of others of so many own axes."""
        value = self.values[position]
        own = len(self.structure.types[position].sites)
        if not self.leads[position] or own >= rank:
            return value
        return reshaped(value, (*self.lead, *(1,) * (rank - own), *value.sites[len(self.lead) :]))

    def scalar(self, ref: ScalarRef, rank: int) -> Scalar:
        return scalar_of(self.builder, ref) if isinstance(ref, Num) else self.led(ref, rank)

    def coef(self, coef: Coef, rank: int) -> Scalar:
        """A coefficient in the builder's scalars."""
        product = Scalar(self.builder, Coef(coef.constant), ())
        for factor in coef.factors:
            product = product * self.scalar(factor, rank)
        return product

    def any_leads(self, refs: Sequence[ScalarRef]) -> bool:
        return any(self.leads[r] for r in refs if isinstance(r, int))

    # ---- instructions

    def instruction(self, position: int) -> tuple[Any, bool]:
        """A value, and whether it has the lead."""
        b, values = self.builder, self.values
        type_ = self.structure.types[position]
        rank = len(type_.sites)
        match self.structure.instructions[position]:
            case InputVector(input=index) | DataScalar(input=index):
                return self.inputs[index], bool(self.lead)
            case BiasVector(bias=index) as instruction:
                assert isinstance(type_, VectorType), "a bias is a vector"
                moved = self.biases.get(index)
                return atom(b, instruction, type_) if moved is None else moved, False
            case MatMul(weight=weight, x=x, transposed=transposed, aspect=aspect):
                return self.operators[weight].product(values[x], transposed, aspect), self.leads[x]
            case LinComb(terms=terms, constants=constants):
                assert isinstance(type_, VectorType), "a LinComb is a vector"
                return self.lincomb(terms, constants, type_)
            case Gather() as instruction:
                return self.gather(instruction)
            case SiteSum(x=x, axes=axes):
                axes = tuple(a + len(self.lead) * self.leads[x] for a in axes)
                kept = tuple(s for a, s in enumerate(values[x].sites) if a not in axes)
                own = VectorType(kept, values[x].type.dim, values[x].type.space)
                return atom(b, SiteSum(values[x].position(), axes), own), self.leads[x]
            case Nonlin(fn=fn, numbers=numbers, vectors=vectors, scalars=scalars, over=over):
                leads = self.any_leads((*vectors, *scalars))
                ranks = [len(self.structure.scalar_sites(r)) for r in (*vectors, *scalars)]
                own = [self.led(v, max(ranks)) for v in vectors]
                refs = [self.scalar(s, max(ranks)) for s in scalars]
                if over is not None and leads:
                    over = tuple(a + len(self.lead) for a in over)
                sites = (*self.lead, *type_.sites) if leads else type_.sites
                new = Nonlin(fn, numbers, tuple(v.position() for v in own), tuple(s.ref() for s in refs), over)
                return atom(b, new, VectorType(sites, own[0].type.dim, "wide")), leads
            case Moment(fn=fn, numbers=numbers, vectors=vectors, scalars=scalars):
                leads = self.any_leads((*vectors, *scalars))
                own = [self.led(v, rank) for v in vectors]
                refs = [self.scalar(s, rank) for s in scalars]
                sites = (*self.lead, *type_.sites) if leads else type_.sites
                new = Moment(fn, numbers, tuple(v.position() for v in own), tuple(s.ref() for s in refs))
                return scalar_of(b, b.emit(new, ScalarType(sites))), leads
            case Inner(x=x, y=y, shared=shared):
                return self.inner(x, y, shared)
            case ScalarFn(fn=fn, numbers=numbers, scalars=scalars):
                leads = self.any_leads(scalars)
                refs = [scalar_of(b, s) if isinstance(s, Num) else values[s] for s in scalars]
                if leads:
                    mapped = tuple(isinstance(s, int) and self.leads[s] for s in scalars)
                    fn = batched(fn, mapped)
                return scalar_fn(b, fn, *refs, numbers=numbers), leads
            case _ as never:
                assert_never(never)

    def lincomb(self, terms: Any, constants: Any, type_: VectorType) -> tuple[Vector, bool]:
        rank = len(type_.sites)
        refs = [x for _, x in terms] + [f for c in (*(c for c, _ in terms), *constants) for f in c.factors]
        total = Vector(self.builder, VectorType((), type_.dim, type_.space), (), ())
        for coef, x in terms:
            total = total + self.led(x, rank) * self.coef(coef, rank)
        for coef in constants:
            total = total + self.coef(coef, rank)
        total.position()
        return total, self.any_leads(refs)

    def gather(self, instruction: Gather) -> tuple[Vector, bool]:
        xs = [self.values[x] for x in instruction.xs]
        leads = any(self.leads[x] for x in instruction.xs)
        source = instruction.source.array
        if not leads:
            return gather(xs, lambda *_: source, instruction.text), False
        xs = [
            v if self.leads[x] else expanded(v, (*self.lead, *v.sites)) for x, v in zip(instruction.xs, xs, strict=True)
        ]
        size = math.prod(self.lead)

        def rearrange(*sources: np.ndarray) -> np.ndarray:
            laid = np.concatenate([s.reshape(size, -1) for s in sources], axis=1)
            return np.where(source < 0, -1, laid[:, source]).reshape(*self.lead, *source.shape)

        return gather(xs, rearrange, instruction.text), True

    def inner(self, x: int, y: int, shared: int) -> tuple[Scalar, bool]:
        own = [self.values[v] for v in (x, y)]
        if not self.any_leads((x, y)):
            return inner_product(*own, shared=shared), False
        own = [v if self.leads[p] else expanded(v, (*self.lead, *v.sites)) for p, v in zip((x, y), own, strict=True)]
        return inner_product(*own, shared=len(self.lead) + shared), True


def inner_product(x: Vector, y: Vector, *, shared: int = 0) -> Scalar:
    """S[h, i, j] = (1/n) Σ_α x[h, i]_α y[h, j]_α of all pairs of sites; the first `shared` axes, h, run together."""
    instruction = Inner(x.position(), y.position(), shared)
    return scalar_of(x.builder, x.builder.emit(instruction, ScalarType((*x.sites, *y.sites[shared:]))))
