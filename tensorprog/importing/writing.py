"""Elementwise equations written down: linear tops as sums, the rest as one function of as few vectors as it has."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from tensorprog.importing.context import Again, Context
from tensorprog.importing.fused import KNOWN, SAME, Argument, Constant, Fused, Node, Step
from tensorprog.importing.values import Atom, Axes, Own, Scal, Vec
from tensorprog.tracing.run import moment, scalar
from tensorprog.tracing.sites import reshape
from tensorprog.tracing.values import Scalar, Vector, nonlin

Affine = tuple[dict[int, tuple[Vec, float]], float]
"""Σ coefficient·vector + constant, vectors by identity."""


# ---- axes


def joined(context: Context, *axes: Axes) -> Axes:
    """The axes of an elementwise result; composite axes that meet plain ones say how parameters must be split."""
    found: list[tuple[Atom, ...]] = []
    for each in zip(*axes, strict=True):
        kinds = {axis for axis in each if axis}
        assert len(kinds) <= 1, "axes are split alike before they are joined"
        found.append(next(iter(kinds), ()))
    return tuple(found)


def split_alike(context: Context, vectors: Sequence[Vec]) -> None:
    """Ask for a parameter to be read as several axes where another vector beside it is."""
    for k in range(len(vectors[0].axes)):
        kinds = {v.axes[k] for v in vectors if v.axes[k]}
        if len(kinds) > 1:
            longest = max(kinds, key=len)
            demand_split(context, [v for v in vectors if v.axes[k] not in ((), longest)], longest)


def demand_split(context: Context, vectors: Sequence[Vec], axis: tuple[Atom, ...]) -> None:
    """Have the axes of parameters that make these vectors' own axis be read as `axis`."""
    origins = frozenset().union(*(v.origins for v in vectors))
    if not origins:
        context.fail("a vector is taken apart along the width", "split parameters, not what is computed from them")
    trials = len(context.trials)
    sizes = tuple(a.sizes if isinstance(a, Own) else (a,) * trials for a in axis)
    raise Again(dict.fromkeys(origins, sizes))


def stripped(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Site axes without leading unit axes, which stand beside others as they are."""
    start = next((k for k, d in enumerate(sizes) if d != 1), len(sizes))
    return sizes[start:]


def aligned(v: Vector, axes: Axes, result: Axes) -> Vector:
    """A vector's sites among those of a result, with unit sites where it is constant."""
    shape = tuple(
        atom if axis else 1 for axis, full in zip(axes, result, strict=True) for atom in full if isinstance(atom, int)
    )
    short = stripped(shape)
    return v if short == v.sites else reshape(v, short)


def beside(context: Context, s: Scal, result: Axes) -> Scalar:
    """A scalar's sites among those of a vector."""
    shape: list[int] = []
    for size, axis in zip(s.shape, result, strict=True):
        fixed = [a for a in axis if isinstance(a, int)]
        if size == 1:
            shape += [1] * len(fixed)
        elif len(fixed) == len(axis):
            shape += fixed
        else:
            context.fail("scalars differ along the width", "a number for each unit has no limit: make it a parameter")
    value, short = write_scalar(context, s), stripped(tuple(shape))
    return value if value.sites == short else value.rearranged(lambda source: source.reshape(short), "{}")


# ---- vectors


def affine(x: Any) -> Affine | None:
    """x as a sum of vectors with numbers for coefficients, or None for other functions of vectors.

    Vectors are those that are written, and those that will be: sums and products of different ones, and what scalars
    of the program shift or scale.
    """
    found = _sum(x)
    if found is None and isinstance(x, Vec) and _is_whole(x):
        return {id(x): (x, 1.0)}, 0.0
    return found


def _is_whole(x: Vec) -> bool:
    """Whether an equation makes a vector of its own: a sum or a product of functions of different vectors."""
    assert x.op is not None, "a written vector is a sum"
    name, args = x.op.name, x.op.args
    if name not in ("add", "add_any", "sub", "mul", "div"):
        return False
    if name == "div":
        return isinstance(args[0], Vec) and isinstance(args[1], Scal)
    if any(isinstance(a, Scal) for a in args):
        return True
    return all(isinstance(a, Vec) for a in args) and bases(args[0]) != bases(args[1])


def _sum(x: Any) -> Affine | None:
    """x as a sum of other vectors, or None."""
    if isinstance(x, float | int):
        return {}, float(x)
    if not isinstance(x, Vec):
        return None
    if x.op is None:
        return {id(x): (x, 1.0)}, 0.0
    name = x.op.name
    if name not in _LINEAR:
        return None
    parts = [affine(a) for a in x.op.args]
    if any(part is None for part in parts):
        return None
    own = [part for part in parts if part is not None]
    if name in ("add", "add_any"):
        return _plus(own[0], own[1])
    if name == "sub":
        return _plus(own[0], _times(own[1], -1.0))
    if name == "neg":
        return _times(own[0], -1.0)
    if name in SAME:
        return own[0]
    if name == "mul":
        for one, other in (own, own[::-1]):
            if not one[0]:
                return _times(other, one[1])
    if name == "div" and not own[1][0]:
        return _times(own[0], 1.0 / own[1][1])
    return None


_LINEAR = {"add", "add_any", "sub", "neg", "mul", "div", *SAME} - {"stop_gradient"}


def _times(one: Affine, c: float) -> Affine:
    return {key: (v, c * w) for key, (v, w) in one[0].items()}, c * one[1]


def _plus(one: Affine, other: Affine) -> Affine:
    terms = dict(one[0])
    for key, (v, w) in other[0].items():
        terms[key] = (v, terms[key][1] + w) if key in terms else (v, w)
    return terms, one[1] + other[1]


def write(context: Context, x: Vec) -> Vector:
    """The vector of the program."""
    if x.v is None:
        x.v = _written(context, x)
        x.op = None
    return x.v


def _written(context: Context, x: Vec) -> Vector:
    assert x.op is not None, "a vector is written or an equation"
    found = _sum(x)
    if found is not None and found[0]:
        return linear(context, found, x.axes)
    name, args = x.op.name, x.op.args
    if name in ("add", "add_any", "sub"):
        sign = -1.0 if name == "sub" else 1.0
        left, right = (_term(context, a, x.axes) for a in args)
        return left - right if sign < 0 else left + right
    if name == "neg":
        return write(context, args[0]).scaled(-1.0)
    if name in SAME:
        return write(context, args[0])
    if name in ("mul", "div") and isinstance(args[0], Vec) and isinstance(args[1], float | int):
        return _term(context, args[0], x.axes).scaled(1.0 / args[1] if name == "div" else args[1])
    if name == "mul" and isinstance(args[1], Vec) and isinstance(args[0], float | int):
        return _term(context, args[1], x.axes).scaled(args[0])
    if name in ("mul", "div") and isinstance(args[0], Vec) and isinstance(args[1], Scal):
        left, right = _term(context, args[0], x.axes), beside(context, args[1], x.axes)
        return left / right if name == "div" else left * right
    if name == "mul" and isinstance(args[0], Scal):
        return _term(context, args[1], x.axes) * beside(context, args[0], x.axes)
    if name == "mul" and bases(args[0]) != bases(args[1]):
        left, right = (_term(context, a, x.axes) for a in args)
        return left * right
    fn, vectors, scalars = region(context, x)
    return nonlin(fn, *vectors, scalars=scalars)


def _term(context: Context, a: Any, axes: Axes) -> Any:
    """An operand of a sum or a product."""
    if isinstance(a, Vec):
        found = affine(a)
        if found is not None and found[0]:
            return linear(context, found, axes)
        return aligned(write(context, a), a.axes, axes)
    return beside(context, a, axes) if isinstance(a, Scal) else a


def linear(context: Context, found: Affine, axes: Axes) -> Vector:
    """Σ coefficient·vector + constant written down, and what each parameter is multiplied by remembered."""
    total: Any = None
    for v, c in found[0].values():
        term = aligned(write(context, v), v.axes, axes)
        own = unfolded(context, v, c)
        term = term if own == 1.0 else term.scaled(own)
        total = term if total is None else total + term
    return total if not found[1] else total + found[1]


def plain_vector(context: Context, x: Vec) -> Vector:
    """The vector itself, whatever multiplier its parameter has taken in."""
    found = affine(x)
    return linear(context, found, x.axes) if found is not None and found[0] else write(context, x)


def unfolded(context: Context, v: Vec, c: float) -> float:
    """The coefficient that is left of c, of what is in the parameter's variance."""
    if v.leaf is None:
        return c
    context.uses.setdefault(v.leaf, set()).add(c)
    return c / context.demands.folds.get(v.leaf, 1.0)


def multiples(x: Vec) -> list[tuple[Vec, Affine]]:
    """A sum without its constant, and those that it is a multiple of: z/2, then z."""
    found = affine(x)
    assert found is not None, "a leaf is a sum"
    chain = [(x, (found[0], 0.0))]
    while x.op is not None and _sum(x) is not None:
        inside = [a for a in x.op.args if isinstance(a, Vec)]
        if len(inside) != 1:
            break
        (x,) = inside
        found = affine(x)
        assert found is not None, "what a sum is made of is one"
        chain.append((x, (found[0], 0.0)))
    return chain


def leaf_key(found: Affine) -> Any:
    """What a sum is up to a factor and a constant."""
    terms = sorted((key, w) for key, (_, w) in found[0].items())
    return tuple((key, round(w / terms[0][1], 12)) for key, w in terms)


def bases(x: Any) -> frozenset[Any]:
    """The Gaussian leaves of an expression: written vectors, and sums of several of them as one."""
    if not isinstance(x, Vec):
        return frozenset()
    found = affine(x)
    if found is not None:
        return frozenset({leaf_key(found)} if found[0] else ())
    assert x.op is not None, "what is no sum is an equation"
    return frozenset().union(*map(bases, x.op.args))


class _Region:
    """An elementwise expression taken as one function of its leaves.

    A leaf is a written vector, or a sum of several, which is one Gaussian: z in gelu(z), whose z/2 and z/√2 are read
    as multiples of the z that they are made of.
    """

    def __init__(self, context: Context, axes: Axes):
        self.context, self.axes = context, axes
        self.vectors: list[tuple[Any, Vector]] = []
        self.scalars: list[tuple[Any, Scalar]] = []
        self.done: dict[int, Node] = {}
        self.chosen: dict[Any, dict[int, Affine]] = {}

    def scan(self, x: Any) -> None:
        """Find each leaf: of all multiples of one sum that occur, the one that the others are made of."""
        if not isinstance(x, Vec):
            return
        found = affine(x)
        if found is None:
            assert x.op is not None, "what is no sum is an equation"
            for a in x.op.args:
                self.scan(a)
        elif found[0]:
            chain = {id(v): sum_ for v, sum_ in multiples(x)}
            known = self.chosen.get(leaf_key(found), chain)
            self.chosen[leaf_key(found)] = {k: v for k, v in known.items() if k in chain} or dict(
                [list(known.items())[-1]]
            )

    def node(self, x: Any) -> Node:
        if id(x) not in self.done:
            self.done[id(x)] = self.fresh(x)
        return self.done[id(x)]

    def fresh(self, x: Any) -> Node:
        if isinstance(x, bool | float | int | np.generic):
            return Constant.of(x)
        if isinstance(x, Scal):
            return self.place(self.scalars, id(x), lambda: beside(self.context, x, self.axes), -1)
        found = affine(x)
        if found is not None and found[0]:
            return self.leaf(found)
        op = x.op
        if op.name in SAME and op.name not in ("stop_gradient", "convert_element_type"):
            return self.node(op.args[0])
        return Step(op.fn, op.params, tuple(map(self.node, op.args)))

    def leaf(self, found: Affine) -> Node:
        """c·z + c₀ of a leaf z."""
        key = leaf_key(found)
        base = next(iter(self.chosen[key].values()))
        if len(base[0]) == 1 and (plain := next(iter(base[0].values()))[0]).leaf is None:
            base = {id(plain): (plain, 1.0)}, 0.0  # a Nonlin is read as it is
        one = next(iter(found[0]))
        c = found[0][one][1] / base[0][one][1]
        node = self.place(self.vectors, key, lambda: linear(self.context, base, self.axes), 0)
        if not np.isclose(c, 1.0, rtol=1e-14):
            node = Step(operator.mul, (), (node, Constant.of(c)))
        return node if not found[1] else Step(operator.add, (), (node, Constant.of(found[1])))

    def place(self, into: list[tuple[Any, Any]], key: Any, make: Callable[[], Any], sign: int) -> Node:
        keys = [k for k, _ in into]
        if key not in keys:
            into.append((key, make()))
            keys.append(key)
        return Argument(keys.index(key) if sign == 0 else -1 - keys.index(key))


def region(context: Context, x: Vec) -> tuple[Any, list[Vector], list[Scalar]]:
    """An expression as (function, vectors, scalars)."""
    made = _Region(context, x.axes)
    made.scan(x)
    root = made.node(x)
    count = len(made.vectors)
    root = _renumbered(root, count)
    vectors, scalars = [v for _, v in made.vectors], [s for _, s in made.scalars]
    return simplest(root, count + len(scalars), _label(x)), vectors, scalars


def _renumbered(node: Node, count: int, done: dict[int, Node] | None = None) -> Node:
    """Scalars' places, counted down from −1, behind those of the vectors."""
    done = {} if done is None else done
    if id(node) not in done:
        match node:
            case Argument(index, shape):
                done[id(node)] = Argument(count - 1 - index, shape) if index < 0 else node
            case Constant():
                done[id(node)] = node
            case Step(fn, params, operands):
                done[id(node)] = Step(fn, params, tuple(_renumbered(o, count, done) for o in operands))
    return done[id(node)]


def simplest(root: Node, count: int, label: str | None) -> Any:
    """The library's own function where the expression is one call of it, else the expression."""
    if isinstance(root, Step) and root.operands == tuple(map(Argument, range(count))):
        if not root.primitive and not root.params:
            return root.fn
        if root.primitive == "mul":
            return operator.mul
        if count == 1 and root.primitive in KNOWN:
            return KNOWN[root.primitive]
    return Fused(root, None, label or "lambda")


def _label(x: Vec | Scal) -> str | None:
    """The function of jax.nn that all equations of an expression are of, if there is one."""
    if x.op is None:
        return None
    labels = {x.op.label}
    for a in x.op.args:
        if isinstance(a, Vec | Scal) and a.op is not None and (not isinstance(a, Vec) or affine(a) is None):
            labels.add(_label(a))
    return labels.pop() if len(labels) == 1 else None


# ---- scalars


def write_scalar(context: Context, s: Scal) -> Scalar:
    """The scalar of the program, its unit axes left out."""
    if s.s is None:
        leaves: list[Scalar] = []
        keys: list[int] = []
        root = _scalar_node(context, s, leaves, keys)
        label = _label(s)
        s.s = scalar(_scalar_function(root, s, label, leaves), *leaves)
        s.op = None
    return s.s


def _scalar_function(root: Node, s: Scal, label: str | None, leaves: Sequence[Scalar]) -> Any:
    if isinstance(root, Step) and len(leaves) == len(root.operands) == 1 and root.primitive in ("sqrt", "rsqrt"):
        return KNOWN[root.primitive]
    return Fused(root, s.sites, label or "lambda")


def _scalar_node(context: Context, s: Any, leaves: list[Scalar], keys: list[int]) -> Node:
    if not isinstance(s, Scal):
        return Constant.of(s)
    if s.op is None:
        assert s.s is not None, "a scalar is written or an equation"
        if id(s) not in keys:
            keys.append(id(s))
            leaves.append(s.s)
        return Argument(keys.index(id(s)), s.shape)
    if s.op.name in SAME - {"convert_element_type", "stop_gradient"}:
        return _scalar_node(context, s.op.args[0], leaves, keys)
    return Step(s.op.fn, s.op.params, tuple(_scalar_node(context, a, leaves, keys) for a in s.op.args))


def averaged(context: Context, x: Vec) -> Scalar:
    """(1/n) Σ over the vector's own axis, at each site."""
    found = affine(x)
    if x.op is None or (found is not None and found[0]):
        value = write(context, x) if x.op is not None else plain_vector(context, x)
        return moment(jax.nn.identity, value)
    fn, vectors, scalars = region(context, x)
    if fn is KNOWN["square"] or (isinstance(fn, Fused) and _is_square(fn.root)):
        return moment(operator.mul, vectors[0], vectors[0])
    return moment(fn, *vectors, scalars=scalars)


def _is_square(root: Node) -> bool:
    """z² of one vector."""
    if not isinstance(root, Step) or set(root.operands) != {Argument(0)}:
        return False
    return root.primitive in ("square", "mul") or (root.primitive, dict(root.params).get("y")) == ("integer_pow", 2)
