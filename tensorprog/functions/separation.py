"""Functions of several vectors as sums of products of functions of fewer: a·sin(6b), gates, exp(−a² − b²), tanh(a + b).

Of independent Gaussians such products have expectations that are products, of functions of one Gaussian each. They are
found in what JAX traces: each intermediate value is affine in the vectors, or a sum of products of *nodes*, each of
which reads some *forms*, linear combinations of the vectors. What no rule takes apart is a node that reads all that its
operands read; a function with a derivative rule of its own is never looked into.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tensorprog.functions.frozen import Function, derived, freeze
from tensorprog.functions.jaxprs import plain

Array = jax.Array
Weights = tuple[float, ...]
"""A linear combination of the vectors, its first coefficient that is not 0 is 1."""
MOST = 8
"""Products that a sum may have."""
_INLINED = ("jit", "pjit", "closed_call", "core_call")
_KEEPS_PRODUCTS = ("abs", "sign", "square", "integer_pow")
_CASTS = ("convert_element_type", "copy", "copy_p", "broadcast_in_dim", "reshape", "squeeze")
_NAMED = {"sin": jnp.sin, "cos": jnp.cos, "exp": jnp.exp, "abs": jnp.abs, "relu": jax.nn.relu}
_NAMED |= {"erf": jax.scipy.special.erf}
"""Primitives, and calls of functions with rules of their own, that are functions of the table of closed forms."""


@dataclass(frozen=True, eq=False)
class _Node:
    """A value made from others: `make` of what `args` are, each evaluated once; `reads` are forms."""

    make: Any
    args: tuple[_Node, ...]
    reads: frozenset[Weights] = frozenset()
    named: Callable[..., Any] | None = None
    """The function of the table that this is, of a form alone."""
    number: Any = None
    """What a number of the function's text is."""

    def value(self, known: dict[int, Any]) -> Any:
        if id(self) not in known:
            known[id(self)] = self.make(*(a.value(known) for a in self.args))
        return known[id(self)]


class _Affine(NamedTuple):
    """Σ wₖ vectorₖ + offset."""

    weights: Weights
    offset: _Node | None


_Products = tuple[tuple[_Node, ...], ...]
"""A sum of products."""
_Value = _Affine | _Products


def _node(make: Any, *args: _Node, named: Any = None) -> _Node:
    return _Node(make, args, frozenset().union(*(a.reads for a in args)), named)


def _constant(value: Any) -> _Node:
    return _Node(lambda: value, ())


def _form(weights: Weights) -> _Node:
    """What stands for a form; its value is put in when the node is evaluated."""
    return _Node(None, (), frozenset({weights}))


def _times(a: _Node, b: _Node) -> _Node:
    return _node(lambda x, y: x * y, a, b)


class _Trace:
    """One function's jaxpr, interpreted in these values. With `joined`, sums of Gaussian vectors stay one form."""

    def __init__(self, gaussian: Sequence[bool], joined: bool):
        self.gaussian, self.joined = gaussian, joined
        self.forms: dict[Weights, _Node] = {}

    def form(self, weights: Weights) -> _Node:
        return self.forms.setdefault(weights, _form(weights))

    def products(self, value: _Value) -> _Products:
        """An affine value as one function of its form, or as the sum that it is."""
        if not isinstance(value, _Affine):
            return value
        weights = value.weights
        if not self.joined and sum(w != 0 for w in weights) > 1:
            alone = [tuple(w if i == j else 0.0 for j in range(len(weights))) for i, w in enumerate(weights) if w != 0]
            parts = [self.products(_Affine(own, None))[0] for own in alone]
            return (*parts, *(() if value.offset is None else ((value.offset,),)))
        first = next(w for w in weights if w != 0)
        node = self.form(tuple(w / first for w in weights))
        if first != 1.0:
            node = _node(lambda x: first * x, node)
        if value.offset is not None:
            node = _node(lambda x, c: x + c, node, value.offset)
        return ((node,),)

    def whole(self, value: _Value) -> _Node:
        """The value as one node."""
        terms = [reduce(_times, term) for term in self.products(value)]
        return reduce(partial(_node, lambda x, y: x + y), terms)

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[_Value]) -> list[_Value]:
        known: dict[Any, _Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        known.update((var, ((_constant(c),),)) for var, c in zip(jaxpr.constvars, consts, strict=True))

        def read(atom: Any) -> _Value:
            if not hasattr(atom, "val"):
                return known[atom]
            return ((_Node(lambda: atom.val, (), number=atom.val),),)

        for equation in jaxpr.eqns:
            own = [read(atom) for atom in equation.invars]
            literals = [_number(v) for v in own]
            found = self.rule(jaxpr, equation, own, literals)
            known.update(zip(equation.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def reads(self, value: _Value) -> frozenset[Weights]:
        if isinstance(value, _Affine):
            return frozenset().union(*(node.reads for term in self.products(value) for node in term))
        return frozenset().union(*(node.reads for term in value for node in term))

    def rule(self, jaxpr: Any, equation: Any, own: list[_Value], literals: list[Any]) -> list[_Value]:
        name = equation.primitive.name
        if name in _INLINED:
            inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
            return self.run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), own)
        scalar = all(v.aval.shape == () for v in (*equation.invars, *equation.outvars)) and _real(equation)
        reads = [self.reads(v) for v in own]
        if scalar and len(equation.outvars) == 1 and any(reads):
            found = self.affine(name, own, reads, literals)
            if found is None and len(frozenset().union(*reads)) > 1:
                found = self.split(jaxpr, equation, own, literals)
            if found is not None:
                return [found]
        return self.opaque(jaxpr, equation, own)

    def opaque(self, jaxpr: Any, equation: Any, own: list[_Value]) -> list[_Value]:
        """The equation as it is, one node for each of its results."""

        def bind(*values: Any) -> Any:
            cast = [jnp.asarray(x, v.aval.dtype) for x, v in zip(values, equation.invars, strict=True)]
            return plain(jaxpr, equation, cast)

        args = [self.whole(v) for v in own]
        results = _node(bind, *args)
        of_form = len(args) == 1 and any(args[0] is form for form in self.forms.values())
        named = _NAMED.get(_called(equation) or equation.primitive.name) if of_form else None
        number = args[0].number if equation.primitive.name in _CASTS and _real(equation) else None
        parts = (_node(lambda x, i=i: x[i], results, named=named) for i in range(len(equation.outvars)))
        return [((replace(part, number=number),),) for part in parts]

    def affine(self, name: str, own: list[_Value], reads: list[Any], literals: list[Any]) -> _Value | None:
        """Sums, and products with numbers of the function's text, stay affine."""
        signs = {"add": 1.0, "add_any": 1.0, "sub": -1.0}
        if name in _CASTS and isinstance(own[0], _Affine):
            return own[0]
        if name == "neg" and isinstance(own[0], _Affine):
            return self.scaled(own[0], -1.0)
        if name in ("mul", "div"):
            for x, factor in ((own[0], literals[1]), (own[1], literals[0] if name == "mul" else None)):
                if isinstance(x, _Affine) and factor is not None and factor != 0:
                    return self.scaled(x, float(factor) if name == "mul" else 1.0 / float(factor))
        if name in signs:
            x, y = own
            if isinstance(x, _Affine) and isinstance(y, _Affine):
                weights = tuple(a + signs[name] * b for a, b in zip(x.weights, y.weights, strict=True))
                if any(weights) and self.may_join(weights):
                    return self.offset(self.offset(_Affine(weights, None), x.offset, 1.0), y.offset, signs[name])
            elif isinstance(x, _Affine) and not reads[1]:
                return self.offset(x, self.whole(y), signs[name])
            elif isinstance(y, _Affine) and not reads[0]:
                return self.offset(self.scaled(y, signs[name]), self.whole(x), 1.0)
        return None

    def may_join(self, weights: Weights) -> bool:
        places = [i for i, w in enumerate(weights) if w != 0]
        return len(places) == 1 or all(self.gaussian[i] for i in places)

    def scaled(self, x: _Affine, factor: float) -> _Affine:
        offset = None if x.offset is None else _node(lambda c: factor * c, x.offset)
        return _Affine(tuple(factor * w for w in x.weights), offset)

    def offset(self, x: _Affine, more: _Node | None, sign: float) -> _Affine:
        if more is None:
            return x
        more = more if sign == 1.0 else _node(lambda c: sign * c, more)
        return _Affine(x.weights, more if x.offset is None else _node(lambda c, d: c + d, x.offset, more))

    def split(self, jaxpr: Any, equation: Any, own: list[_Value], literals: list[Any]) -> _Products | None:
        """Rules for what reads several forms."""
        name = equation.primitive.name
        sums = [self.products(v) for v in own]
        single = all(len(terms) == 1 for terms in sums)
        match name:
            case "mul" if len(sums[0]) * len(sums[1]) <= MOST:
                return tuple(a + b for a in sums[0] for b in sums[1])
            case "div" if len(sums[1]) == 1:
                inverse = tuple(_node(lambda x: 1.0 / x, node) for node in sums[1][0])
                return tuple(term + inverse for term in sums[0])
            case "add" | "add_any" | "sub" if len(sums[0]) + len(sums[1]) <= MOST:
                minus = _constant(-1.0)
                return sums[0] + (tuple((minus, *term) for term in sums[1]) if name == "sub" else sums[1])
            case "neg":
                return tuple((_constant(-1.0), *term) for term in sums[0])
            case _ if (name in _KEEPS_PRODUCTS or name in _CASTS) and single:
                return (tuple(self.whole(self.opaque(jaxpr, equation, [((node,),)])[0]) for node in sums[0][0]),)
            case "integer_pow" | "square" if (equation.params.get("y", 2)) == 2 and len(sums[0]) ** 2 <= MOST:
                return tuple(a + b for a in sums[0] for b in sums[0])
            case "exp" if not single:
                return (tuple(_node(jnp.exp, part) for part in _independent(sums[0])),)
            case "cos" | "sin" if not single:
                return self.wave(name, _independent(sums[0]))
            case "select_n" if len(sums) == 3 and len(sums[0]) == 1 and len(sums[1]) + len(sums[2]) <= MOST:
                test = self.whole(own[0])
                kept = [terms for terms, value in zip(sums[1:], literals[1:], strict=True) if value is None or value]
                if not kept:
                    return ((_constant(0.0),),)
                return tuple(
                    _chosen(test, which, term)
                    for which, terms in enumerate(sums[1:])
                    if any(terms is k for k in kept)
                    for term in terms
                )
            case _:
                return None

    def wave(self, name: str, parts: list[_Node]) -> _Products | None:
        """cos and sin of a sum, by the addition theorems."""
        if not 1 < len(parts) <= 3:
            return None
        first, rest = parts[0], parts[1:]
        inner = {kind: self.wave(kind, rest) or ((_node(getattr(jnp, kind), rest[0]),),) for kind in ("cos", "sin")}
        cos, sin, minus = _node(jnp.cos, first), _node(jnp.sin, first), _constant(-1.0)
        if name == "cos":
            return tuple((cos, *t) for t in inner["cos"]) + tuple((minus, sin, *t) for t in inner["sin"])
        return tuple((sin, *t) for t in inner["cos"]) + tuple((cos, *t) for t in inner["sin"])


def _real(equation: Any) -> bool:
    """Whether its results are real numbers in the function's digits: casts to integers, bools or less digits round."""
    kept = lambda dtype: jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32
    return all(kept(v.aval.dtype) for v in equation.outvars)


def _number(value: _Value) -> Any:
    """What a value is that is no more than a number of the text."""
    if isinstance(value, _Affine) or len(value) != 1 or len(value[0]) != 1:
        return None
    return value[0][0].number


def _called(equation: Any) -> str | None:
    """The name of the function that a call is of, where it is all that is called."""
    inner = equation.params.get("call_jaxpr")
    equations = getattr(getattr(inner, "jaxpr", inner), "eqns", ())
    return equations[0].params.get("name") if len(equations) == 1 else None


def _chosen(test: _Node, which: int, term: tuple[_Node, ...]) -> tuple[_Node, ...]:
    """A term where `test` says so. What reads the same as the test is chosen itself, and may be infinite elsewhere."""
    beside = [node for node in term if node.reads & test.reads]
    rest = tuple(node for node in term if not node.reads & test.reads)
    value = reduce(_times, beside) if beside else _constant(1.0)
    picked = _node(lambda t, x: jnp.where(jnp.asarray(t) == which, x, jnp.zeros_like(x)), test, value)
    return (picked, *rest)


def _independent(terms: _Products) -> list[_Node]:
    """A sum of terms as parts that share no vectors: numbers go with the first."""
    parts: list[tuple[set[int], _Node]] = []
    for term in sorted(terms, key=lambda t: not frozenset().union(*(n.reads for n in t))):
        node = reduce(_times, term)
        places = _places(node)
        touching = [p for p in parts if p[0] & places] or (parts[:1] if not places else [])
        parts = [p for p in parts if not any(p is t for t in touching)]
        nodes = [p[1] for p in touching] + [node]
        merged = reduce(partial(_node, lambda x, y: x + y), nodes)
        parts.append((places.union(*(p[0] for p in touching)), merged))
    return [node for _, node in parts]


def _places(node: _Node) -> set[int]:
    """The vectors that a node reads."""
    return {i for weights in node.reads for i, w in enumerate(weights) if w != 0}


def _factors(term: tuple[_Node, ...], fallback: _Node) -> list[_Node]:
    """A product's nodes, those that share forms as one; numbers go with the first."""
    found: list[_Node] = []
    for node in sorted(term, key=lambda n: not n.reads):
        beside = [f for f in found if f.reads & node.reads] or (found[:1] if not node.reads else [])
        found = [f for f in found if not any(f is b for b in beside)]
        found.insert(0, reduce(_times, [*beside, node]))
    if not found[0].reads:  # a constant: a function of any vector
        return [_node(lambda c, x: c + 0 * x, found[0], fallback)]
    return found[::-1]  # as they stand in the function


class Factor(NamedTuple):
    """A function of forms, in order; `fn` is None where it is the form itself."""

    forms: tuple[Weights, ...]
    fn: Function | None
    scalars: bool
    """Whether it is handed the scalars and numbers of the whole function."""


@dataclass(frozen=True)
class Signature:
    """What a function is called with: which of its vectors are Gaussian, how many scalars, which forms are kept."""

    gaussian: tuple[bool, ...]
    scalars: int
    joined: bool

    def factors(self, fn: Callable[..., Any], dtype: Any) -> tuple[list[list[_Node]], _Trace, list[_Node]]:
        """The factors of each product, the trace they are from, and the places of the scalars."""
        count = len(self.gaussian)
        closed = jax.make_jaxpr(lambda *a: jnp.asarray(fn(*a)))(
            *[jax.ShapeDtypeStruct((), dtype)] * (count + self.scalars)
        )
        trace = _Trace(self.gaussian, self.joined)
        units = [tuple(float(i == j) for j in range(count)) for i in range(count)]
        scalars = [_Node(None, ()) for _ in range(self.scalars)]
        inputs = [*(_Affine(unit, None) for unit in units), *(((s,),) for s in scalars)]
        (found,) = trace.run(closed.jaxpr, closed.consts, inputs)
        return [_factors(term, trace.form(units[0])) for term in trace.products(found)], trace, scalars


@dataclass(frozen=True)
class _Part:
    """fn(vectors, scalars) -> one factor of it, a function of its forms and the scalars."""

    signature: Signature
    term: int
    factor: int

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def part(*arguments: Array) -> Array:
            dtype = jnp.result_type(*arguments)
            products, trace, scalars = self.signature.factors(fn, dtype)
            node = products[self.term][self.factor]
            count = len(arguments) - len(scalars)
            forms = [trace.forms[weights] for weights in sorted(node.reads)]
            assert len(forms) == count, "a function is taken apart alike each time"
            places = zip((*forms, *scalars), arguments, strict=True)
            return jnp.asarray(node.value({id(place): value for place, value in places}), dtype)

        return part


@lru_cache(maxsize=4096)
def separated(
    fn: Function, gaussian: tuple[bool, ...], scalars: int, held: tuple[tuple[int, ...], ...]
) -> tuple[tuple[Factor, ...], ...] | None:
    """fn(z¹, …, θ¹, …) as a sum of products of functions of fewer forms; None where there is nothing to gain.

    `gaussian`: which vectors may stand in sums that are one Gaussian; `held`: shapes of the arrays that fn holds.
    """
    dtype = jnp.result_type(float)
    found = []
    for joined in (False, True):
        signature = Signature(gaussian, scalars, joined)
        try:
            numbers = tuple(jnp.ones(shape, dtype) for shape in held)
            products, trace, _ = signature.factors(lambda *a, n=numbers: fn(*a, numbers=n), dtype)
        except Exception:  # a function that JAX cannot trace so is refused elsewhere, at its line
            continue
        if len(products) <= MOST:
            found.append((max(map(_together, products)), len(products), signature, products, trace))
    best = min(found, key=lambda f: f[:2], default=None)
    if best is None or best[0] >= len(gaussian):
        return None
    _, _, signature, products, trace = best
    return tuple(
        tuple(_factor(fn, signature, trace, node, (i, j)) for j, node in enumerate(nodes))
        for i, nodes in enumerate(products)
    )


def _factor(fn: Function, signature: Signature, trace: _Trace, node: _Node, place: tuple[int, int]) -> Factor:
    forms = tuple(sorted(node.reads))
    if node is trace.forms.get(forms[0]):
        return Factor(forms, None, False)
    if node.named is not None:
        return Factor(forms, freeze(node.named)[0], False)
    return Factor(forms, derived(_Part(signature, *place), fn, f"{fn.name}[{place[0] + 1}, {place[1] + 1}]"), True)


def _together(nodes: list[_Node]) -> int:
    """The most forms that share vectors, of independent ones, in one product."""
    groups: list[tuple[set[int], set[Weights]]] = []
    for node in nodes:
        places, forms = _places(node), set(node.reads)
        touching = [g for g in groups if g[0] & places]
        groups = [g for g in groups if not g[0] & places]
        groups.append((places.union(*(g[0] for g in touching)), forms.union(*(g[1] for g in touching))))
    return max(len(forms) for _, forms in groups)
