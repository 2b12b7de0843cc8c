"""Running a program forward: the values of its instructions one after another, in whatever stands for a vector.

A wide vector is an array (*sites, M): its n coordinates in a finite network; draws, quadrature nodes or coefficients of
its limit Z in the interpreter of limits. What differs between these is a matrix times a vector, a bias, the constant
vector and what averages over the wide axis; everything else is here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, assert_never

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.ir import (
    Bias,
    BiasVector,
    Coef,
    DataScalar,
    Dim,
    Gather,
    Inner,
    InputVector,
    LinComb,
    MatMul,
    Moment,
    Nonlin,
    Num,
    Parameter,
    ScalarFn,
    ScalarRef,
    SiteSum,
    VectorType,
)
from tensorprog.program import Program

Array = jax.Array


def safe_sqrt(value: Array) -> Array:
    """√value with derivative 0, not infinite, at 0."""
    positive = ~(value <= 0)  # NaN stays NaN
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, value, 1.0)), 0.0)


class Evaluator(ABC):
    """The values of one example's instructions, in program order."""

    def __init__(self, program: Program, inputs: tuple[Array, ...], dtype: Any):
        self.structure, self.leaves = program.structure, program.leaves
        self.inputs, self.dtype = inputs, dtype
        self.values: dict[int, Array] = {}

    # ---- what an interpreter says of its vectors

    @abstractmethod
    def matmul(self, instruction: MatMul, x: Array) -> Array:
        """A x at each site."""

    @abstractmethod
    def bias(self, bias: Bias) -> Array:
        """A bias as a vector, without its mean."""

    @abstractmethod
    def ones(self, dim: Dim) -> Array:
        """The constant vector 1 of a width."""

    @abstractmethod
    def mean(self, values: Array, dim: Dim) -> Array:
        """The average over the wide axis."""

    # ---- numbers

    def number(self, num: Num) -> Array:
        return jnp.asarray(self.leaves[num.index], self.dtype)

    def scalar(self, ref: ScalarRef) -> Array:
        return self.number(ref) if isinstance(ref, Num) else self.values[ref]

    def coef(self, coef: Coef) -> Array:
        return math.prod((self.scalar(f) for f in coef.factors), start=jnp.asarray(coef.constant, self.dtype))

    def scale(self, parameter: Parameter) -> Array:
        """What the trained parameter is multiplied by: `scale`, √var by default."""
        if parameter.scale is not None:
            return self.number(parameter.scale)
        return safe_sqrt(self.number(parameter.var))

    # ---- instructions

    def instruction(self, position: int) -> Array:
        structure, values = self.structure, self.values
        match structure.instructions[position]:
            case InputVector(input=index) | DataScalar(input=index):
                return self.inputs[index]
            case BiasVector(bias=index):
                bias = structure.biases[index]
                centred = self.bias(bias)
                return centred if bias.mean is None else centred + self.number(bias.mean) * self.ones(bias.dim)
            case MatMul(x=x) as product:
                return self.matmul(product, values[x])
            case LinComb():
                return self.lincomb(position)
            case Gather(xs=xs, source=source):
                flat = [values[x].reshape(-1, values[x].shape[-1]) for x in xs]
                if (source.array < 0).any():  # place -1, the last one here, is the zero vector
                    flat.append(jnp.zeros_like(flat[0], shape=(1, flat[0].shape[-1])))
                return jnp.concatenate(flat)[source.array]
            case SiteSum(x=x, axes=axes):
                return values[x].sum(axes)
            case Nonlin() as nonlin:
                return self.nonlin(nonlin)
            case Moment() as moment:
                return self.moment(moment)
            case Inner(x=x, y=y, shared=shared):
                return self.inner(values[x], values[y], structure.vector(x), shared)
            case ScalarFn(fn=fn, numbers=numbers, scalars=scalars):
                arguments = [self.scalar(s) for s in scalars]
                return jnp.asarray(fn(*arguments, numbers=tuple(self.number(n) for n in numbers)), self.dtype)
            case _ as never:
                assert_never(never)

    def lincomb(self, position: int) -> Array:
        instruction = self.structure.instructions[position]
        assert isinstance(instruction, LinComb), "lincomb is for LinCombs"
        type_ = self.structure.vector(position)
        terms = [self.coef(coef)[..., None] * self.values[x] for coef, x in instruction.terms]
        constants = [self.coef(coef)[..., None] * self.ones(type_.dim) for coef in instruction.constants]
        parts = [*terms, *constants]
        return sum(parts[1:], start=parts[0])

    def nonlin(self, nonlin: Nonlin) -> Array:
        return self.pointwise(nonlin.fn, nonlin.numbers, nonlin.vectors, nonlin.scalars, nonlin.over)

    def moment(self, moment: Moment) -> Array:
        values = self.pointwise(moment.fn, moment.numbers, moment.vectors, moment.scalars, None)
        return self.mean(values, self.structure.vector(moment.vectors[0]).dim)

    def inner(self, x: Array, y: Array, type_: VectorType, shared: int) -> Array:
        """All pairs of sites of two vectors: their average product over the wide axis, over the features of inputs."""
        left, right = (a.reshape(*a.shape[:shared], math.prod(a.shape[shared:-1]), a.shape[-1]) for a in (x, y))
        pairs = jnp.matmul(left, jnp.swapaxes(right, -1, -2), precision=jax.lax.Precision.HIGHEST) / x.shape[-1]
        return pairs.reshape(*x.shape[:-1], *y.shape[shared:-1])

    def pointwise(
        self,
        fn: Any,
        numbers: tuple[Num, ...],
        vectors: tuple[int, ...],
        scalars: tuple[ScalarRef, ...],
        over: tuple[int, ...] | None,
    ) -> Array:
        """fn at every coordinate and site; with `over`, at every coordinate and every other site."""
        arguments = [self.values[v] for v in vectors] + [self.scalar(s)[..., None] for s in scalars]
        arguments = jnp.broadcast_arrays(*arguments)
        values = tuple(self.number(n) for n in numbers)
        # What a function returns may have a dtype of its own: a comparison, an array in double precision inside it.
        held = lambda *coordinate: jnp.asarray(fn(*coordinate, numbers=values), self.dtype)
        if over is not None:
            return _over(held, arguments, over)
        return jax.vmap(held)(*(a.reshape(-1) for a in arguments)).reshape(arguments[0].shape)


def _over(fn: Any, arguments: list[jax.Array], over: tuple[int, ...]) -> jax.Array:
    """fn sees the axes `over` whole, in that order; the other site axes and the wide axis are mapped over."""
    sites = arguments[0].ndim - 1
    rest = [axis for axis in range(sites) if axis not in over]
    moved = [jnp.transpose(a, (*rest, sites, *over)) for a in arguments]
    lead = moved[0].shape[: len(rest) + 1]
    flat = [a.reshape(-1, *a.shape[len(rest) + 1 :]) for a in moved]
    result = jax.vmap(fn)(*flat)
    result = result.reshape(*lead, *result.shape[1:])
    if result.ndim == len(lead):
        return result
    order = np.argsort([*rest, sites, *over])  # the axis at each place of the result, sites in their old order
    return jnp.transpose(result, tuple(order.tolist()))
