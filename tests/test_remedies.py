"""What messages tell users to write, written: every text of the package that proposes code has a row here, with a
program that gets to see it and what it says to write instead, which must work."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (what the types forbid is what is tested here)

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp

PACKAGE = Path(tp.__file__).parent
N = tp.Width("n")
X = np.array([[1.0, 0.0, 0.5], [0.5, 0.6, -1.0]])
KEY = jax.random.key(0)


def of(fn: Callable[..., Any], *inputs: Any) -> Callable[[], tp.Program]:
    """Trace a function, of one input of three features by default; so that it can be applied: that is its test."""
    return lambda: tp.trace(fn, *(inputs or (tp.Input(3),)))


def wide(x: Any, name: str = "U") -> Any:
    return tp.weight(name, N, x.features) @ x


def out(h: Any) -> Any:
    return tp.weight("v", 1, N) @ h


def recurrent(x: Any) -> Any:
    W, U = tp.weight("W", N, N), tp.weight("U", N, x.features)
    s = tp.nonlin(jnp.tanh, U @ x[0])
    return out(tp.nonlin(jnp.tanh, W @ s + U @ x[1]))


def recurrent_from(start: Any) -> Callable[[Any], Any]:
    def fn(x: Any) -> Any:
        s = start() if callable(start) else start
        return out(tp.weight("W", N, N) @ s + wide(x[0]))

    return fn


def centred(x: Any) -> Any:
    h = wide(x)
    m = tp.moment(lambda a: a, h)
    return out(tp.nonlin(lambda a, m: a - m, h, scalars=(m,)))


def tied(t: Any) -> Any:
    E = tp.bias("E", N, sites=(3,))
    h = tp.nonlin(jnp.tanh, tp.sum(t * E))
    return tp.moment(lambda e, h: e * h, E, h)


def way_back(x: Any) -> Any:
    E = tp.weight("E", N, x.features)
    return tp.weight("E2", 3, N) @ tp.nonlin(jnp.tanh, E @ x)


def transposed(x: Any) -> Any:
    E = tp.weight("E", N, x.features)
    return E.T @ tp.nonlin(jnp.tanh, E @ x)


def convolved(x: Any, conv: Any = tp.conv, sites: tuple = ()) -> Any:
    return out(tp.sum(conv(tp.weight("W", N, x.features, window=(3,), sites=sites), x)))


def applied(program: tp.Program, *x: Any) -> Any:
    params = tp.init(program, KEY, 8)
    return tp.apply(program, params, (x[0] if len(x) == 1 else x) if x else X)


LINE, SITES, SCALARS = tp.Input(5, 3), tp.Input(2, 3), tp.Data(3)
MLP = of(lambda x: out(tp.nonlin(jax.nn.relu, wide(x))))
MEAN = of(lambda x: tp.moment(lambda h: h, tp.nonlin(jnp.tanh, wide(x))))
NTK = np.array([[2.0, 0.5], [0.5, 1.0]])
kept: list[Any] = []


def foreign(x: Any) -> Any:
    return out(kept[0] + wide(x)) if kept else kept.append(wide(x)) or out(kept[0])


def keep_foreign() -> Any:
    kept.clear()
    of(foreign)()
    return of(foreign)()


def own(f: Callable[..., Any], *inputs: Any) -> Callable[[], tp.Program]:
    """Import f(n, params, x) with arrays U (n, 3), W (n, n), v (n,) of variance 1."""

    def build(n: int, key: Any) -> Any:
        shapes = {"U": (n, 3), "W": (n, n), "v": (n,)}
        keys = jax.random.split(key, len(shapes))
        drawn = {name: jax.random.normal(k, shape) for (name, shape), k in zip(shapes.items(), keys, strict=True)}
        return (lambda p, x: f(n, p, x)), drawn

    return lambda: tp.from_jax(build, *(inputs or (tp.Input(3),)), check=False)


def attention(power: float) -> Callable[..., Any]:
    def f(n: int, p: Any, x: Any) -> Any:
        h = x @ p["U"].T
        return jax.nn.softmax(h @ jnp.swapaxes(h @ p["W"], 1, 2) / n**power) @ h @ p["v"] / n**0.5

    return f


def read(n: int, p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["U"].T) @ p["v"] / n**0.5


ROWS: list[tuple[str, Callable[[], Any], tuple[Callable[[], Any], ...]]] = [
    # what a program is
    ("make one with tp.trace(fn, tp.Input(…))", lambda: tp.check(3), (lambda: tp.check(MLP()),)),
    ("write tp.Input(*sites, features)", lambda: tp.Input(0), (lambda: tp.Input(2, 3),)),
    ("write tp.Data(*shape)", lambda: tp.Data(0), (lambda: tp.Data(2, 3),)),
    ("give a function of traced inputs, and tp.Input(…) for each", lambda: tp.trace(3, tp.Input(3)), (MLP,)),
    ("write tp.Input(*sites, features), or tp.Data(*shape)", lambda: tp.trace(tied, 3), (of(tied, SCALARS),)),
    ("give a tp.Input for each input, in order", of(lambda x, y: x),
     (of(lambda x, y: out(wide(x) + wide(y, "V")), tp.Input(3), tp.Input(3)),)),
    ("inside the function that is given to tp.trace", lambda: tp.weight("W", N, 3), (MLP,)),
    ("make every value inside the function that is given to tp.trace", keep_foreign, (MLP,)),
    # dimensions and names
    ("give a width a name of one line, tp.Width('n')", of(lambda x: tp.weight("U", tp.Width("n\n"), 3) @ x), (MLP,)),
    ("a ratio from 1e-6 to 1e6", of(lambda x: tp.weight("U", tp.Width("n", ratio=1e30), 3) @ x),
     (of(lambda x: tp.weight("U", tp.Width("n", ratio=4.0), 3) @ x),)),
    ("give a tp.Width, or a positive int", of(lambda x: tp.weight("U", 0, 3) @ x), (MLP,)),
    ("n = tp.Width('n') and tp.weight('W', n, …)", of(lambda x: tp.nonlin(jnp.tanh, tp.weight("W", 64, 3) @ x)),
     (of(lambda x: tp.nonlin(jnp.tanh, tp.weight("W", N, 3) @ x)),)),
    ("return the readout and apply it to what tp.apply gives", of(lambda x: tp.nonlin(jnp.tanh, out(wide(x)))),
     (lambda: jnp.tanh(applied(MLP())), of(lambda x: out(tp.nonlin(jnp.tanh, wide(x)))))),
    ("read the input through a weight: U @ x", of(lambda x: x + wide(x)), (of(lambda x: wide(x) + wide(x, "V")),)),
    ("read it through a weight first: U @ x", of(lambda x: tp.nonlin(jnp.tanh, x)), (MLP,)),
    ("tp.weight('U', {}, x.features)", of(lambda x: tp.weight("W", N, N) @ x), (MLP,)),
    # a width is no number, a state not 0
    ("start a recurrence from its first step", of(recurrent_from(lambda: jnp.zeros(N)), SITES),
     (of(recurrent, SITES),)),
    ("another size tp.Width('m', ratio=2)", of(lambda x: wide(x) * N),
     (of(lambda x: out(tp.weight("W", N, tp.Width("m", ratio=2)) @ (tp.weight("U", tp.Width("m", ratio=2), 3) @ x))),
      of(lambda x: out(tp.bias("s", N) + wide(x))), of(lambda x: tp.moment(lambda a: a, wide(x))))),
    ("tp.bias('s', n) is a start that is drawn or learned", of(recurrent_from(0), SITES),
     (of(recurrent_from(lambda: tp.bias("s", N)), SITES), of(recurrent, SITES))),
    ("tp.bias('s', n) is a start that is drawn or learned", of(recurrent_from(np.zeros(64)), SITES),
     (of(recurrent, SITES),)),
    ("a tp.Width is taken for a number", of(lambda x: wide(x) / np.sqrt(N)), (MLP,)),
    # products
    ("keep its {} vectors as sites", of(transposed), (of(tied, SCALARS), of(way_back))),
    ("use tp.conv_transpose", of(lambda x: tp.weight("W", N, N, window=(3,)).T @ x, LINE),
     (of(lambda x: out(tp.sum(tp.conv_transpose(tp.weight("W", N, x.features, window=(3,)), x))), LINE),)),
    ("declare data that has features as tp.Input(*sites, features)", of(lambda t: tp.weight("W", N, 3) @ t, SCALARS),
     (of(lambda x: out(wide(x))), of(lambda t, x: out(tp.sum(t * wide(x))), SCALARS, tp.Input(3, 3)),
      of(lambda A, x: out(tp.sum(tp.mix(A, wide(x)))), tp.Data(2, 2), SITES))),
    ("pass data in through tp.trace(fn, tp.Input(…))", of(lambda x: tp.weight("W", N, 3) @ np.ones(3)), (MLP,)),
    ("use tp.conv(W, x), or tp.conv_local(W, x)", of(lambda x: tp.weight("W", N, 3, window=(3,)) @ x, LINE),
     (of(convolved, LINE), of(lambda x: convolved(x, tp.conv_local, (3,)), LINE))),
    ("with a window too it is tp.conv_local(W, x)", of(lambda x: tp.weight("W", N, 3, sites=(4,)) @ x, LINE),
     (of(lambda x: out(tp.sum(tp.weight("W", N, 3) @ x)), LINE),
      of(lambda x: out(tp.sum(tp.weight("W", N, 3, sites=(4,)) @ x[..., None])), LINE),
      of(lambda x: convolved(x, tp.conv_local, (3,)), LINE))),
    ("for their inner product write tp.moment", of(lambda x: wide(x) @ wide(x, "V")),
     (of(lambda x: tp.moment(lambda a, b: a * b, wide(x), wide(x, "V"))),)),
    ("for a fixed matrix over sites write tp.mix(A, x)", of(lambda x: np.ones((2, 2)) @ wide(x), SITES),
     (of(lambda x: out(tp.sum(tp.mix(np.ones((2, 2)), wide(x)))), SITES), of(lambda x: out(wide(x))))),
    ("write θ * x; a matrix over sites tp.mix(θ, x)", of(lambda A, x: A @ wide(x), tp.Data(2, 2), SITES),
     (of(lambda A, x: out(tp.sum(tp.mix(A, wide(x)))), tp.Data(2, 2), SITES),
      of(lambda t, x: out(tp.sum(t * wide(x))), tp.Data(2), SITES))),
    ("give an array (I, J), a scalar with sites, or tp.Data", of(lambda x: tp.mix("A", wide(x)), SITES),
     (of(lambda x: out(tp.sum(tp.mix([[1, 2], [3, 4]], wide(x)))), SITES),)),
    ("declare v = tp.weight('v', 1, n), and write tp.entries(v)", of(lambda x: tp.entries(wide(x))),
     (of(lambda x: wide(x) + tp.entries(tp.weight("v", 1, N))), of(lambda x: wide(x) + tp.bias("v", N)))),
    ("give a readout, v = tp.weight('v', 1, n)", of(lambda x: tp.entries(tp.weight("W", N, N))),
     (of(lambda x: wide(x) + tp.entries(tp.weight("v", 1, N))),)),
    ("declare one row at each of so many sites, v = tp.weight({}, 1, n, sites={}); its outputs are v @ x[..., None]",
     of(lambda x: tp.entries(tp.weight("v", 3, N))),
     (of(lambda x: tp.entries(tp.weight("v", 1, N, sites=(3,))) + wide(x)),
      of(lambda x: tp.weight("v", 1, N, sites=(3,)) @ wide(x)[..., None]))),
    ("to the front with tp.transpose, in one order",
     of(lambda x, y: tp.inner(wide(x), wide(y, "V"), shared=1), tp.Input(2, 4, 3), tp.Input(4, 2, 3)),
     (of(lambda x, y: tp.inner(wide(x), tp.transpose(wide(y, "V")), shared=1), tp.Input(2, 4, 3), tp.Input(4, 2, 3)),)),
    # functions
    ("tp.nonlin(fn, x, over=0) for one of a whole site axis", of(lambda x: jnp.tanh(wide(x))),
     (of(lambda x: out(tp.nonlin(jnp.tanh, wide(x)))),
      of(lambda x: out(tp.sum(tp.nonlin(jax.nn.softmax, wide(x), over=0))), SITES),
      of(lambda t, x: out(tp.sum(tp.scalar(jax.nn.softmax, t) * wide(x))), tp.Data(2), SITES))),
    ("return the readout and apply the function to what tp.apply gives", of(lambda x: jax.nn.softmax(out(wide(x)))),
     (lambda: jax.nn.softmax(applied(MLP())), of(lambda x: out(tp.nonlin(jnp.tanh, wide(x)))))),
    ("jnp.real(…), jnp.imag(…) or jnp.abs(…) of these", of(lambda x: tp.nonlin(lambda a: jnp.exp(1j * a), wide(x))),
     (of(lambda x: out(tp.nonlin(lambda a: jnp.real(jnp.exp(1j * a)), wide(x))
                       + tp.nonlin(lambda a: jnp.imag(jnp.exp(1j * a)), wide(x, "V")))),
      of(lambda x: out(tp.nonlin(lambda a: jnp.abs(jnp.exp(1j * a) + 1), wide(x)))))),
    ("write tp.nonlin(fn, x) with x a traced vector", lambda: tp.nonlin(jnp.tanh, 0.0), (MLP,)),
    ("write jnp.where(z > 0, a, b) instead of if", of(lambda x: tp.nonlin(lambda z: z if z > 0 else 0.0, wide(x))),
     (of(lambda x: out(tp.nonlin(lambda z: jnp.where(z > 0, z, 0.0), wide(x)))),)),
    ("write the choice into the function of a Nonlin", of(lambda x: 1 if wide(x) else 0),
     (of(lambda x: out(tp.nonlin(lambda z: jnp.where(z > 0, z, 0.0), wide(x)))),)),
    ("of a scalar tp.scalar(fn, s), with a function of jax.numpy", of(lambda t: float(t), tp.Data()),
     (of(lambda t, x: out(tp.scalar(jnp.exp, t) * wide(x)), tp.Data(), tp.Input(3)), MLP)),
    ("over sites there are tp.stack, tp.concat, tp.sum, tp.mean", of(lambda x: np.asarray(wide(x))),
     (of(lambda x: out(tp.sum(tp.stack([wide(x), wide(x, "V")])))),
      of(lambda x: out(tp.mean(tp.concat([wide(x), wide(x, "V")]))), SITES))),
    ("tp.nonlin(lambda z: z**2, x), of a scalar tp.scalar(lambda s: s**2, s)", of(lambda x: wide(x) ** 2),
     (of(lambda x: out(tp.nonlin(lambda z: z**2, wide(x)))),
      of(lambda t, x: out(tp.scalar(lambda s: s**2, t) * wide(x)), tp.Data(), tp.Input(3)))),
    ("put the new vectors together with tp.stack or tp.concat", of(lambda x: wide(x).__setitem__(0, 1), SITES),
     (of(lambda x: out(tp.sum(tp.stack([wide(x)[1], wide(x, "V")[0]]))), SITES),)),
    ("write tp.scalar for scalars alone", of(lambda t: tp.moment(jnp.tanh, scalars=(t,)), tp.Data()),
     (of(lambda t, x: out(tp.scalar(jnp.tanh, t) * wide(x)), tp.Data(), tp.Input(3)),)),
    ("functions of vectors are tp.nonlin, tp.moment, tp.sum", of(lambda x: wide(x).mean()),
     (of(lambda x: out(tp.sum(tp.nonlin(jnp.tanh, wide(x)))), SITES), MEAN)),
    ("scalars have functions of their whole arrays, tp.scalar(jnp.sum, θ)", of(lambda t: tp.sum(t), SCALARS),
     (of(lambda t, x: out(tp.scalar(jnp.sum, t) * wide(x)), SCALARS, tp.Input(3)),)),
    ("write np.array([…]) for numbers", of(lambda x: wide(x) * [1.0, 2.0], SITES),
     (of(lambda x: out(tp.sum(wide(x) * np.array([1.0, 2.0]))), SITES),)),
    # windows
    ("write tp.conv_local({}, x)", of(lambda x: convolved(x, tp.conv, (3,)), LINE),
     (of(lambda x: convolved(x, tp.conv_local, (3,)), LINE),)),
    (", or write tp.conv({}, x)", of(lambda x: convolved(x, tp.conv_local), LINE),
     (of(convolved, LINE), of(lambda x: convolved(x, tp.conv_local, (3,)), LINE))),
    ("and write tp.{}(W, x)", of(lambda x: tp.conv(np.ones((3, 3)), x), LINE), (of(convolved, LINE),)),
    # limits, kernels and what takes them
    ("return its Moments, tp.moment(fn, x)", lambda: tp.limit(of(wide)(), X),
     (MEAN, lambda: tp.nngp(of(wide)(), X))),
    ("its covariance is tp.nngp(program, x)", lambda: tp.limit(MLP(), X),
     (lambda: tp.nngp(MLP(), X), of(lambda x: tp.moment(lambda v, h: v * h, tp.bias("v", N), wide(x))))),
    ("take tp.apply for its value", lambda: tp.empirical.nngp(MEAN(), tp.init(MEAN(), KEY, 8), X),
     (lambda: applied(MEAN()),)),
    ("for an NTK of order 1 read the vector with v = tp.weight('v', 1, n)", lambda: tp.ntk(MEAN(), X),
     (lambda: tp.ntk(MLP(), X),)),
    ("take them from tp.init(program, key, width)", lambda: tp.apply(MLP(), 3, X), (lambda: applied(MLP()),)),
    ("take them from tp.init(program, key, width) of this program", lambda: tp.apply(MLP(), {}, X),
     (lambda: applied(MLP()),)),
    ("give 'multiplier-std' (the NTK parameterization", lambda: tp.ntk(MLP(), X, convention="ntk"),
     (lambda: tp.ntk(MLP(), X, convention="multiplier-std"), lambda: tp.ntk(MLP(), X, convention="init-std"),
      lambda: tp.ntk(MLP(), X, convention="standard", widths=8))),
    ("write program.replace({\"W.var\": 1.3})", lambda: MLP().replace(3), (lambda: MLP().replace({"U.var": 1.3}),)),
    ("give jax.random.key(0)", lambda: tp.init(MLP(), 3.5, 8), (lambda: tp.init(MLP(), jax.random.key(0), 8),)),
    ("as tp.ntk(program, x) returns it", lambda: tp.predict.posterior(NTK[0], NTK, None, [1.0, 2.0]),
     (lambda: tp.predict.posterior(NTK, NTK, None, [1.0, 2.0]),)),
    ("give the kernel of the training inputs with themselves, tp.ntk(program, x)",
     lambda: tp.predict.posterior(np.array([[1.0, 2.0], [0.0, 1.0]]), NTK, None, [1.0, 2.0]),
     (lambda: tp.predict.posterior(NTK, NTK, None, [1.0, 2.0]),)),
    ("trace a function of an input, tp.trace(fn, tp.Input(…))", lambda: tp.compare(of_nothing(), None, widths=(4, 8)),
     (MLP,)),
    # the zoo
    ("give tp.Input(time, features)", of(tp.nets.rnn), (of(tp.nets.rnn, tp.Input(4, 3)),)),
    ("give tp.Input(tokens, features)", of(tp.nets.transformer), (of(tp.nets.transformer, tp.Input(2, 3)),)),
    ("averages over the width are tp.moment(fn, x), and functions of whole site axes tp.nonlin(fn, x, over=axes)",
     of(lambda x: out(tp.nonlin(lambda a: a - a.mean(axis=0), wide(x)))),
     (of(lambda x: tp.moment(lambda a: a * a, wide(x))),
      of(lambda x: out(tp.nonlin(lambda a: a.max(axis=0), wide(x), over=(0,))), tp.Input(4, 3)))),
    ("m = tp.moment(lambda a: a, x) and tp.nonlin(lambda a, m: a - m, x, scalars=(m,))",
     of(lambda x: out(tp.nonlin(lambda a: a - a.mean(), wide(x)))), (of(centred),)),
    # models of other libraries
    ("in a function of your own write q @ k.T / d", own(attention(1.0), tp.Input(2, 3)),
     (own(attention(1.5), tp.Input(2, 3)),)),
    ("Flax and Equinox modules go to tp.from_flax", lambda: tp.from_jax(lambda n, key: 3, tp.Input(3)), (own(read),)),
    ("normalise the data before the network", own(lambda n, p, x: read(n, p, x / x.sum(-1, keepdims=True))),
     (own(read),)),
    ("give data as one tp.Data",
     own(lambda n, p, x: read(n, p, x[0] * jnp.concatenate([x[1], x[2]], 1).sum(1)[:, None]), tp.Input(3), tp.Data(2),
         tp.Data(2)),
     (own(lambda n, p, x: read(n, p, x[0] * x[1].sum(1)[:, None]), tp.Input(3), tp.Data(4)),)),
]  # fmt: skip


def of_nothing() -> tp.Program:
    return tp.trace(lambda: tp.bias("b", N))


@pytest.mark.parametrize("index", range(len(ROWS)), ids=lambda index: ROWS[index][0][:40])
def test_what_a_message_proposes_works(index: int) -> None:
    proposes, bad, remedies = ROWS[index]
    with pytest.raises(tp.ProgramError) as told:
        bad()
    words = " ".join(str(told.value).split())
    for part in " ".join(proposes.split()).split("{}"):
        assert part in words, words
    for remedy in remedies:
        made = remedy()
        if isinstance(made, tp.Program):  # it is a network, not only accepted by the tracer
            inputs = tuple(np.ones((2, *i.shape)) for i in made.structure.inputs)
            assert np.isfinite(jax.tree.leaves(applied(made, *inputs))[0]).all()


# What is asked for in other test files, or needs a compiled kernel to be seen: the message's file, or what it says.
ELSEWHERE = {
    "accuracy.py", "gia.py", "comparison/models.py", "predict/solving.py", "predict/training.py",
    "sklearn/gram.py", "sklearn/programs.py", "transform/sgd.py", "nets/normalised.py", "nets/sets.py",
    "sampling/run.py", "nets/convolutional.py", "nets/attention.py", "tp.check(program) judges each function",
}  # fmt: skip


def proposals(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Texts with code of the library's in them, {} for what is filled in; docstrings are left out."""
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    skipped |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            text = node.value
        else:
            continue
        if "tp." in text and " " in text:
            yield node.lineno, text


def test_every_message_that_proposes_code_is_tried() -> None:
    tried = [row[0] for row in ROWS]
    missing = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if name in ELSEWHERE:
            continue
        for line, text in proposals(ast.parse(path.read_text(encoding="utf-8"))):
            if not any(known in text for known in (*tried, *ELSEWHERE)):
                missing.append(f"{name}:{line}: {text}")
    assert missing == []
