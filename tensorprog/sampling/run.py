"""One run of a program on draws: the values of all its instructions for a whole batch, and their tangents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, assert_never

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.compiling import compiled
from tensorprog.errors import problem
from tensorprog.functions.frozen import Function
from tensorprog.functions.jaxprs import pushforward
from tensorprog.interpret.spaces import HIGHEST
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
    Sites,
    SiteSum,
    fan,
    operands,
)
from tensorprog.program import Program
from tensorprog.sampling.draws import Draws
from tensorprog.sampling.families import Family, Law
from tensorprog.sampling.plan import Plan
from tensorprog.sampling.vectors import Atom, Vector, at_sites, drawn

Array = jax.Array


def _ranked(a: Array, rank: int, after: int = 0) -> Array:
    """(B, *sites, …) with so many site axes, new ones in front; `after` axes follow the sites."""
    extra = (1,) * (rank + 1 + after - a.ndim)
    return a.reshape(a.shape[0], *extra, *a.shape[1:])


@compiled("fn", "over", "dtype")
def _applied(
    fn: Function,
    numbers: tuple[Array, ...],
    arguments: tuple[Array, ...],
    scalars: tuple[Array, ...],
    over: tuple[int, ...] | None,
    dtype: jnp.dtype,
) -> Array:
    """fn at every coordinate, site and example of arrays (B, *sites, M); with `over`, whole over those axes."""
    every = jnp.broadcast_arrays(*arguments, *(s[..., None] for s in scalars))
    # What a function returns may have a dtype of its own: a comparison, an array in double precision inside it.
    held = lambda *coordinate: jnp.asarray(fn(*coordinate, numbers=numbers), dtype)
    if over is None:
        return jax.vmap(held)(*(a.reshape(-1) for a in every)).reshape(every[0].shape)
    # The draws stay the last axis, along which everything is contiguous.
    rest = [axis for axis in range(every[0].ndim) if axis not in over]
    moved = [jnp.transpose(a, (*over, *rest)) for a in every]
    lead = moved[0].shape[len(over) :]
    result = jax.vmap(held, -1, -1)(*(a.reshape(*a.shape[: len(over)], -1) for a in moved))
    result = result.reshape(*result.shape[:-1], *lead)
    if result.ndim == len(lead):
        return result
    return jnp.transpose(result, np.argsort([*over, *rest]).tolist())


@compiled("fn", "over", "dtype")
def _with_tangent(
    fn: Function,
    numbers: tuple[Array, ...],
    arguments: tuple[Array, ...],
    tangents: tuple[Array, ...],
    scalars: tuple[Array, ...],
    over: tuple[int, ...] | None,
    dtype: jnp.dtype,
) -> tuple[Array, Array]:
    """The same with its directional derivative in the vectors."""
    return pushforward(lambda *a: _applied(fn, numbers, a, scalars, over, dtype), arguments, tangents)


class Run:
    """The values of a program's instructions over one set of draws.

    `weights`: the NTK's weight of each parameter, or None for the NNGP alone.
    """

    def __init__(
        self, program: Program, inputs: tuple[Array, ...], plan: Plan, draws: Draws, weights: Array | None, dtype: Any
    ):
        self.structure, self.leaves, self.plan = program.structure, program.leaves, plan
        self.inputs, self.draws, self.dtype = inputs, draws, dtype
        self.tangents = weights is not None
        self.values: dict[int, Any] = {}
        self.laws = {p: self.law(p, None if weights is None else weights[p]) for p in range(len(self.parameters))}
        self.families: dict[int, Family] = {}

    @property
    def parameters(self) -> tuple[Any, ...]:
        return self.structure.parameters

    def law(self, place: int, weight: Array | None) -> Law:
        parameter = self.parameters[place]
        weight = jnp.zeros((), self.dtype) if weight is None else jnp.asarray(weight, self.dtype)
        norm = 1.0
        if place < len(self.structure.weights):
            norm = 1.0 / (fan(parameter) * (1 if isinstance(parameter.cols, int) else self.draws.points))
        return Law(self.number(parameter.var), weight, norm)

    def run(self, ends: Sequence[int]) -> None:
        """The values of `ends`; others go after their last reader."""
        last: dict[int, int] = {}
        for position in self.plan.positions:
            for operand in operands(self.structure.instructions[position]):
                last[operand] = position
        for position in self.plan.positions:
            self.values[position] = self.instruction(position)
            for operand in operands(self.structure.instructions[position]):
                if last[operand] == position and operand not in ends:
                    self.values.pop(operand, None)

    # ---- numbers and scalars, (B, *sites)

    def number(self, num: Num) -> Array:
        return jnp.asarray(self.leaves[num.index], self.dtype)

    def scalar(self, ref: ScalarRef) -> Array:
        return self.number(ref)[None] if isinstance(ref, Num) else self.values[ref]

    def coef(self, coef: Coef, rank: int) -> Array:
        factors = (_ranked(self.scalar(f), rank) for f in coef.factors)
        return math.prod(factors, start=jnp.full((1,) * (rank + 1), coef.constant, self.dtype))

    # ---- instructions

    def instruction(self, position: int) -> Any:
        structure, values = self.structure, self.values
        sites = structure.types[position].sites
        match structure.instructions[position]:
            case InputVector(input=index):
                return drawn(Atom(self.inputs[index]), sites)
            case DataScalar(input=index):
                return self.inputs[index]
            case BiasVector(bias=index):
                return self.bias(index)
            case MatMul() as product:
                return self.matmul(position, product, sites)
            case LinComb(terms=terms, constants=constants):
                return self.lincomb(terms, constants, sites)
            case Gather(xs=xs, source=source):
                return self.gather([values[x] for x in xs], source.array)
            case SiteSum(x=x, axes=axes):
                along = tuple(a + 1 for a in axes)
                return values[x].full().map(lambda a: a.sum(along), sites)
            case Nonlin(fn=fn, numbers=numbers, vectors=vectors, scalars=scalars, over=over):
                return drawn(self.nonlin(fn, numbers, vectors, scalars, over), sites)
            case Moment(fn=fn, numbers=numbers, vectors=vectors, scalars=scalars):
                return self.nonlin(fn, numbers, vectors, scalars, None, tangents=False).values.mean(-1)
            case Inner(x=x, y=y, shared=shared):
                return self.inner(values[x], values[y], shared)
            case ScalarFn(fn=fn, numbers=numbers, scalars=scalars):
                return self.scalar_fn(fn, numbers, [self.scalar(s) for s in scalars])
            case _ as never:
                assert_never(never)

    def bias(self, index: int) -> Vector:
        bias = self.structure.biases[index]
        size = math.prod(bias.sites)
        own = jnp.eye(size, dtype=self.dtype).reshape(1, *bias.sites, size)
        constant = None
        if bias.mean is not None:
            constant = jnp.broadcast_to(self.number(bias.mean), (1, *bias.sites))
        return Vector(bias.sites, {len(self.structure.weights) + index: Atom(own)}, constant)

    def matmul(self, position: int, product: MatMul, sites: Sites) -> Vector:
        """A x: what the weight multiplies, the offsets of its window laid end to end."""
        weight = self.structure.weights[product.weight]
        if product.aspect:  # other products of a backward pass are refused before
            raise problem(
                self.structure.line(position), f"entries({weight.name})",
                "kernels that are estimated from samples have no rule for a readout whose entries are a vector too",
                "take tp.kernels(program, x, method='backward'), or declare the vector apart, tp.bias('b', n)",
            )  # fmt: skip
        x = self.draw(self.values[product.x])
        if product.transposed:
            x = x.map(lambda a: jnp.sqrt(self.ratio(str(weight.rows), str(weight.cols))) * a)
        window, untied = len(weight.window), len(weight.sites)
        assert not (product.transposed and (window or untied)), "transposes of windows are no products of limits"
        if window:
            x = x.map(lambda a: a.reshape(*a.shape[: a.ndim - 1 - window], -1))
        if untied:
            x = x.map(partial(_apart, rank=untied))
        return Vector(sites, {product.weight: x})

    def ratio(self, rows: str, cols: str) -> Array:
        numbers = dict(self.structure.widths)
        return self.number(numbers[rows]) / self.number(numbers[cols])

    def lincomb(self, terms: Any, constants: Any, sites: Sites) -> Vector:
        rank = len(sites)
        total = None
        for coef, position in terms:
            x = self.values[position].ranked(rank)
            if not coef.is_one:
                scale = self.coef(coef, rank)[..., None]
                shape = jnp.broadcast_shapes(x.sites, scale.shape[1:-1])
                x = x.map(lambda a, scale=scale: scale * a, shape)
            total = x if total is None else total + x
        for coef in constants:
            scale = self.coef(coef, rank)
            constant = Vector(scale.shape[1:], constant=scale)
            total = constant if total is None else total + constant
        assert total is not None, "a sum has terms"
        return at_sites(total, sites)

    def gather(self, xs: list[Vector], source: np.ndarray) -> Vector:
        """Sites laid end to end and picked by `source`; place -1 is 0."""
        offset, total = 0, None
        for x in xs:
            size = math.prod(x.sites)
            mine = (source >= offset) & (source < offset + size)
            places, everywhere = jnp.asarray(np.where(mine, source - offset, 0)), bool(mine.all())

            def pick(a: Array, size: int = size, places: Array = places, mine: Any = mine, every: bool = everywhere):
                found = a.reshape(a.shape[0], size, a.shape[-1])[:, places]
                return found if every else jnp.where(mine[..., None], found, 0)

            offset += size
            if mine.any():
                picked = x.full().map(pick, source.shape)
                total = picked if total is None else total + picked
        if total is None:
            return Vector(source.shape, constant=jnp.zeros((1, *source.shape), self.dtype))
        return total

    def nonlin(
        self, fn: Function, numbers: Any, vectors: Any, scalars: Any, over: Any, *, tangents: bool = True
    ) -> Atom:
        arguments = [self.draw(self.values[v]) for v in vectors]
        refs = [self.scalar(s) for s in scalars]
        rank = max([a.values.ndim - 2 for a in arguments] + [s.ndim - 1 for s in refs])
        values = tuple(_ranked(a.values, rank, 1) for a in arguments)
        held = tuple(self.number(n) for n in numbers)
        scalar = tuple(_ranked(s, rank) for s in refs)
        axes = None if over is None else tuple(a + 1 for a in over)
        if not tangents or all(a.tangent is None for a in arguments):
            return Atom(_applied(fn, held, values, scalar, axes, self.dtype))
        moving = tuple(
            jnp.zeros_like(v) if a.tangent is None else _ranked(a.tangent, rank, 1)
            for a, v in zip(arguments, values, strict=True)
        )
        return Atom(*_with_tangent(fn, held, values, moving, scalar, axes, self.dtype))

    def inner(self, x: Vector, y: Vector, shared: int) -> Array:
        left, right = (self.draw(v).values for v in (x, y))
        size, together = max(len(left), len(right)), math.prod(x.sites[:shared])
        flat = [
            jnp.broadcast_to(a, (size, *a.shape[1:])).reshape(size, together, math.prod(a.shape[1 + shared : -1]), -1)
            for a in (left, right)
        ]
        pairs = jnp.einsum("bhim,bhjm->bhij", *flat, precision=HIGHEST) / left.shape[-1]
        return pairs.reshape(size, *x.sites, *y.sites[shared:])

    def scalar_fn(self, fn: Function, numbers: Any, scalars: list[Array]) -> Array:
        """fn sees the whole arrays of one example."""
        held = tuple(self.number(n) for n in numbers)
        size = max((len(s) for s in scalars), default=1)
        axes = [0 if len(s) == size else None for s in scalars]
        given = [s if axis == 0 else s[0] for s, axis in zip(scalars, axes, strict=True)]
        one = lambda *a: jnp.asarray(fn(*a, numbers=held), self.dtype)
        return jax.vmap(one, axes)(*given) if given else one()[None]

    # ---- draws and kernels

    def draw(self, x: Vector) -> Atom:
        """All of a vector drawn, once."""
        if x.whole is None:
            total = x.drawn
            if x.parts:
                gaussian = self.gaussian(x)
                total = gaussian if total is None else total + gaussian
            if x.constant is not None:
                own = x.constant[..., None]
                if total is None:  # a constant alone: the same in every draw
                    total = Atom(jnp.broadcast_to(own, (*x.constant.shape, self.draws.points)))
                else:
                    total = Atom(own + total.values, total.tangent)
            assert total is not None, "a vector is something"
            x.whole = total.map(lambda a: jnp.broadcast_to(a, (*a.shape[:1], *x.sites, a.shape[-1])))
        return x.whole

    def gaussian(self, x: Vector) -> Atom:
        """Draws of the Gaussian part."""
        lead = max(len(a.values) for a in x.parts.values())
        shape = (lead, *x.sites)
        key = self.plan.family[min(x.parts)]
        if key not in self.families:
            self.families[key] = Family(self.laws, self.draws, self.plan.rows[key], self.tangents)
        blocks = {p: atom.block(shape) for p, atom in x.parts.items()}
        values, tangent = self.families[key].draw(blocks)
        back: Callable[[Array], Array] = lambda a: a.reshape(*shape, -1)
        return Atom(back(values), None if tangent is None else back(tangent))

    def rows(self, x: Vector) -> tuple[int, ...]:
        """The examples and a vector's sites."""
        return (len(self.inputs[0]) if self.inputs else 1, *x.sites)

    def second_moments(self, u: int, v: int) -> tuple[Array, Array | None]:
        """lim u·v̄/n and that of their tangents over all rows (examples, sites) of both; exact where both are linear in
        what was drawn."""
        x, y = self.values[u], self.values[v]
        if x.drawn is not None or y.drawn is not None:
            left, right = (self.draw(z).block(self.rows(z)) for z in (x, y))
            values, tangents = left.product(right)
            return values / self.draws.points, None if tangents is None else tangents / self.draws.points
        value = tangent = jnp.zeros((math.prod(self.rows(x)), math.prod(self.rows(y))), self.dtype)
        for p in x.parts:
            if p in y.parts:
                left, right = (z.parts[p].block(self.rows(z)) for z in (x, y))
                own, learned = self.laws[p].covariances(left.product(right))
                value, tangent = value + own, tangent + learned
        if x.constant is not None and y.constant is not None:
            left, right = (jnp.broadcast_to(z.constant, self.rows(z)).reshape(-1) for z in (x, y))
            value = value + left[:, None] * right
        return value, tangent if self.tangents else None


def _apart(a: Array, rank: int) -> Array:
    """(…, *S, K) with what stands at each of the last `rank` axes S in columns of its own: (…, *S, ∏S · K)."""
    sites = a.shape[a.ndim - 1 - rank : a.ndim - 1]
    size = math.prod(sites)
    own = jnp.eye(size, dtype=a.dtype).reshape(*sites, size, 1)
    return (own * a[..., None, :]).reshape(*a.shape[:-1], -1)
