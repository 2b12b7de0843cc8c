"""The backward pass as a program: equal to `jax.grad` at finite width, and a road of its own to the NTK."""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import zoo

import tensorprog as tp
from tensorprog.decomposition import Terms
from tensorprog.gia import reached
from tensorprog.interpret.finite import _Network
from tensorprog.interpret.particles import Limit
from tensorprog.nets import ZOO
from tensorprog.transform.batching import together
from tensorprog.transform.passes import AVERAGE, Pass, Use, passes

SLOW = pytest.mark.slow


def data(program: tp.Program, n: int = 2) -> Any:
    shapes = [i.shape for i in program.structure.inputs]
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=(n, *shape))) for shape in shapes)


def attention(x: Any) -> Any:
    """Sites, gathers, functions over whole axes, Moments, functions of scalars."""
    n = tp.Width("n")
    W, U, b = tp.weight("W", n, n), tp.weight("U", n, x.features), tp.bias("b", n, sites=(3,))
    h = U @ x + b
    mean = tp.moment(lambda z: z, h)
    size = tp.moment(lambda z, m: (z - m) ** 2, h, scalars=(mean,))
    h = tp.nonlin(lambda z, m, v: (z - m) / jnp.sqrt(v + 0.1), h, scalars=(mean, size))
    pooled = tp.nonlin(jnp.max, W @ h, over=0)
    mixed = tp.nonlin(lambda z: jnp.flip(jnp.cumsum(jnp.tanh(z)))[:2], W @ h, over=0)
    scores = tp.scalar(jax.nn.softmax, tp.moment(lambda a, b: a * b, h, pooled))
    out = tp.mean(h * scores) + 0.5 * tp.sum(mixed) + tp.concat([h, tp.stack([pooled, pooled])])[np.array([4, 0, 0])][1]
    return tp.weight("v", 1, n) @ tp.nonlin(jnp.tanh, out * pooled)


def sites_of_readouts(x: Any) -> Any:
    n = tp.Width("n")
    W, U, v = tp.weight("W", n, n, var=1.3), tp.weight("U", n, x.features), tp.weight("v", 1, n, var=0.7)
    return tp.mean(v @ tp.nonlin(jnp.tanh, W @ tp.nonlin(jnp.tanh, U @ x)), axis=1) * 2.0 + tp.bias("c", 1)


def transposes(x: Any) -> Any:
    n, m = tp.Width("n", ratio=2.0), tp.Width("m")
    W, U = tp.weight("W", n, m, var=1.5), tp.weight("U", m, x.features)
    h = tp.nonlin(jnp.tanh, W @ tp.nonlin(jnp.tanh, U @ x))
    return tp.weight("v", 1, m) @ tp.nonlin(jnp.tanh, W.T @ h)


def average(x: Any) -> Any:
    n, m = tp.Width("n"), tp.Width("m", ratio=0.5)
    W, U = tp.weight("W", n, m, var=1.5, scale=2.0), tp.weight("U", m, x.features)
    s = tp.nonlin(jnp.tanh, W @ tp.nonlin(jnp.tanh, U @ x) + tp.bias("b", n, mean=0.5))
    return tp.scalar(jnp.exp, tp.moment(lambda z: z**2, s))


def mean_of_transposes(x: Any) -> Any:
    n, m = tp.Width("n", ratio=2.0), tp.Width("m")
    W = tp.weight("W", n, m, var=1.5)
    h = tp.nonlin(jnp.tanh, W @ tp.nonlin(jnp.tanh, tp.weight("U", m, x.features) @ x))
    return tp.moment(lambda z: jnp.tanh(z + 1), W.T @ h)


def cnn(x: Any) -> Any:
    """Strides, dilation, all paddings, pooling with counted edges, a Flatten readout."""
    n, m = tp.Width("n"), tp.Width("m", ratio=1.5)
    h = tp.conv(tp.weight("W1", m, x.features, window=(3, 2)), x, strides=(1, 2)) + tp.bias("b1", m)
    h = tp.pool(tp.nonlin(jnp.tanh, h), 3, 2, padding="SAME", count_edges=False)
    h = tp.conv(tp.weight("W2", n, m, window=(2, 2), var=1.5), h, padding="CIRCULAR", dilation=(2, 1))
    h = tp.nonlin(jnp.tanh, h)
    return tp.conv(tp.weight("v", 1, n, window=h.sites, var=0.7), h, padding="VALID")[0, 0] + tp.bias("c", 1)


def untied(x: Any) -> Any:
    """Matrices at each site, zeros around, transposed convolutions, biases at each site; a readout at every site."""
    n = tp.Width("n")
    h = tp.conv_local(tp.weight("L", n, x.features, window=(2, 2), sites=(3, 2)), x) + tp.bias("b", n, sites=(3, 2))
    h = tp.pad(tp.nonlin(jnp.tanh, h), ((0, 1), (1, 0)))
    h = tp.nonlin(jnp.tanh, tp.conv_local(tp.weight("K", n, n, window=(3,), sites=(2,)), h, 2, padding="SAME"))
    h = tp.conv_transpose(tp.weight("T", n, n, window=(3,)), h, 2) + tp.bias("c", n, sites=(1, 4))
    h = tp.weight("M", n, n, sites=(4,)) @ tp.nonlin(jnp.tanh, h[:2])
    return tp.conv(tp.weight("v", 1, n, window=(2, 1)), tp.nonlin(jnp.tanh, h))


def graph(x: Any, adjacency: Any, mask: Any) -> Any:
    """Data as matrices over sites and as masks, one matrix for each of several heads, attention scores."""
    n = tp.Width("n")
    h = tp.nonlin(jnp.tanh, tp.weight("U", n, x.features) @ tp.mix(adjacency, x)) * mask
    h = tp.nonlin(lambda z, m: jnp.tanh(z + m), tp.weight("W", n, n) @ tp.mix(adjacency, h), scalars=(mask,))
    scores = tp.inner(tp.weight("Q", n, n) @ h, tp.weight("K", n, n) @ h) + adjacency
    heads = tp.mix(tp.scalar(jax.nn.softmax, scores) * np.array([1.0, -0.5])[:, None, None], h)
    size = tp.moment(lambda z, m: m * z**2, h, scalars=(mask,))
    return tp.weight("v", 1, n) @ (tp.mean(heads) * (size[0] + 1.0) + mask[1] * h[1])


def average_of_windows(x: Any) -> Any:
    n, m = tp.Width("n"), tp.Width("m", ratio=0.5)
    h = tp.nonlin(jnp.tanh, tp.conv(tp.weight("W1", m, x.features, window=(3,)), x))
    h = tp.nonlin(jnp.tanh, tp.conv(tp.weight("W2", n, m, window=(3,), var=1.5), h, 2) + tp.bias("b", n, sites=(2,)))
    return tp.scalar(jnp.sum, tp.moment(lambda v, z: v * z, tp.bias("v", n, sites=(2,)), h))


PROGRAMS = {
    **ZOO,
    "attention": tp.trace(attention, tp.Input(3, 4)),
    "sites_of_readouts": tp.trace(sites_of_readouts, tp.Input(3, 2, 4)),
    "transposes": tp.trace(transposes, tp.Input(4)),
    "average": tp.trace(average, tp.Input(4)),
    "mean_of_transposes": tp.trace(mean_of_transposes, tp.Input(4)),
    "cnn": tp.trace(cnn, tp.Input(4, 5, 3)),
    "untied": tp.trace(untied, tp.Input(4, 3, 2)),
    "graph": tp.trace(graph, tp.Input(3, 4), tp.Data(3, 3), tp.Data(3)),
    "average_of_windows": tp.trace(average_of_windows, tp.Input(4, 2)),
}


def gradient(both: Pass, use: Use, values: dict[int, Any]) -> Any:
    """What a use adds to √n ∂f/∂W (n ∂f/∂W of a Moment): left rightᵀ summed over sites, after the output's sites."""
    left = values[use.left]
    if both.program.structure.vector(use.left).space == "output":
        left = left[..., None]
    if use.right is None:
        return left
    weight = next(w for w in both.program.structure.weights if w.name == use.parameter)
    dy, z = (values[use.right], left) if use.transposed else (left, values[use.right])
    if weight.window or weight.sites:
        places, offsets = math.prod(weight.sites), math.prod(weight.window)
        dy = dy.reshape(*dy.shape[: len(both.lead)], -1, places, dy.shape[-1])
        return jnp.einsum("...spa,spob->...poab", dy, z.reshape(-1, places, offsets, z.shape[-1]))
    dy = dy.reshape(*dy.shape[: len(both.lead)], -1, dy.shape[-1])
    outer = jnp.einsum("...sa,sb->...ab", dy, z.reshape(-1, z.shape[-1]))
    return jnp.swapaxes(outer, -1, -2) if use.transposed else outer


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=SLOW) if n in ZOO and n not in zoo.QUICK else n for n in PROGRAMS]
)
def test_gradients_are_jax_grad_s(name: str) -> None:
    """∂f/∂θ assembled from the vectors of both passes: dy zᵀ over the uses of each parameter."""
    program = PROGRAMS[name]
    x = data(program, 1)
    params = tp.init(program, jax.random.key(1), width=12)
    both = passes(program, program.structure.outputs[0])
    run = jax.jit(lambda q: tp.apply(both.program, q, x))(params)
    values = {p: v[0] for p, v in zip(both.program.structure.outputs, run, strict=True)}
    exact = jax.jit(jax.jacobian(lambda q: tp.apply(program, q, x)[0]))(params)
    found: dict[str, Any] = {}
    for use in both.uses:
        parameter = next(p for p in program.structure.parameters if p.name == use.parameter)
        scale = math.sqrt(program.numbers[f"{parameter.name}.var"]) if parameter.scale is None else 2.0
        fan = 1 if use.right is None else exact[use.parameter].shape[-1] * math.prod(getattr(parameter, "window", ()))
        across = use.right if use.transposed and use.right is not None else use.left  # dy, scaled by its width
        readout = both.program.structure.vector(across).space == "output"
        size = 1 if readout else values[across].shape[-1]
        term = scale * gradient(both, use, values) / math.sqrt(fan) / size ** (both.power / 2)
        found[use.parameter] = found.get(use.parameter, 0) + term
    # The output depends on no other parameter; on some only through jumps, with gradient 0 by both.
    assert set(found) <= set(exact) and not any(exact.pop(name).any() for name in set(exact) - set(found))
    for parameter, value in exact.items():
        size = float(jnp.abs(value).max())
        np.testing.assert_allclose(found[parameter].reshape(value.shape), value, atol=1e-12 * max(size, 1e-3))


@pytest.mark.parametrize("name", ["mlp", "rnn_mean", "attention", "average"])
def test_outputs_are_the_gradients_of_named_vectors(name: str) -> None:
    program = PROGRAMS[name]
    back = tp.backprop(program)
    x = data(program, 2)
    params = tp.init(program, jax.random.key(0), width=8)
    grads = tp.apply(back, params, x)
    names = [back.structure.names[o] for o in back.structure.outputs]
    assert len(set(names)) == len(names) and all(str(n).startswith("d") for n in names)
    for found, label in zip(grads, names, strict=True):
        vector = tp.apply(program, params, x, at=str(label)[1:])
        assert found.shape == vector.shape


def test_listing_reads_like_a_paper() -> None:
    text = str(tp.backprop(ZOO["rnn"]))
    lines = [line.split("   ")[0].strip() for line in text.splitlines()]
    for line in [
        "ds3 = √n vᵀ",
        "dg3 = ds3 ⊙ tanh′(g3)",
        "ds2 = Wᵀ dg3",
        "dg1 = ds1 ⊙ tanh′(g1)",
        "return dg1, dg2, dg3",
    ]:
        assert line in lines, text


def entries(x: Any) -> Any:
    """A readout whose own entries it reads, so that the terms of both its uses and the one across count."""
    n = tp.Width("n")
    v = tp.weight("v", 1, n, var=1.4, window=(2,))
    h = tp.nonlin(jnp.tanh, tp.weight("U", n, x.features) @ x + tp.entries(v))
    return tp.conv(v, h, padding="VALID")[0]


def mean_of_entries(x: Any) -> Any:
    n = tp.Width("n")
    v, h = tp.entries(tp.weight("v", 1, n, var=1.4, sites=(2,))), tp.weight("U", n, x.features) @ x
    return tp.scalar(jnp.sum, tp.moment(operator.mul, v, tp.nonlin(jnp.tanh, h + v[::-1])))


ENTRIES = {fn.__name__: tp.trace(fn, tp.Input(2, 3)) for fn in (entries, mean_of_entries)}


class Network(_Network):
    """A finite network that is run like a limit, for what reads limits."""

    second_moments = Limit.second_moments

    def run(self, positions: list[int]) -> None:
        for position in positions:
            self.values[position] = self.instruction(position)


@pytest.mark.parametrize(
    "name",
    [
        "sites_of_readouts", "transposes", "average", "mean_of_transposes", "rnn_mean",
        "cnn", "untied", "graph", "average_of_windows", "entries", "mean_of_entries",
    ],
)  # fmt: skip
def test_the_decomposition_is_an_identity_at_finite_width(name: str) -> None:
    """Θ = Σ over pairs of uses (left · left̄)(right · right̄), with the interpreter's factors."""
    program, width = {**PROGRAMS, **ENTRIES}[name], 6
    x = data(program, 2)
    params = tp.init(program, jax.random.key(1), width=width)
    both = passes(program, program.structure.outputs[0])
    ends = tuple(dict.fromkeys(end for use in both.uses for end in use.ends))
    batch = together(both.program, 2, ends)

    placed = tuple(
        replace(u, left=batch.places[u.left], right=None if u.right is None else batch.places[u.right])
        for u in both.uses
    )

    @jax.jit
    def moments(params: Any) -> Any:
        network = Network(batch.program, params, x)
        network.run(reached(batch.program.structure, tuple(batch.places.values())))
        return Terms(placed, len(both.lead), both.power)(network)  # type: ignore[arg-type]

    terms = moments(params)
    jacobian = jax.jit(jax.jacobian(lambda q: tp.apply(program, q, x)))(params)
    for parameter in program.structure.parameters:
        flat = jacobian[parameter.name]
        flat = flat.reshape(2, *both.lead, -1)
        theta = jnp.tensordot(flat, flat, (-1, -1))
        theta = jnp.moveaxis(theta, 1 + len(both.lead), 1)
        scale = program.numbers[f"{parameter.name}.var"] if parameter.scale is None else 4.0
        factor = width if both.power == AVERAGE else 1.0
        found = sum(term for (name, _), term in terms.items() if name == parameter.name)
        np.testing.assert_allclose(scale * found, factor * theta, rtol=1e-9, atol=1e-12)


TWO_ROADS = ["mlp", "mlp_two_widths", *(pytest.param(n, marks=SLOW) for n in ("mlp_tied", "rnn_mean", "transformer"))]
TWO_ROADS += [
    pytest.param(n, marks=pytest.mark.full)
    for n in ("cnn_gap", "cnn_flatten", "gcn", "layernorm_mlp", "siamese", "swiglu")
]


@pytest.mark.parametrize("name", TWO_ROADS)
def test_both_roads_to_the_ntk_agree(name: str) -> None:
    program = ZOO[name]
    x = zoo.data(program, 3)
    start = zoo.rows(x, slice(2))
    # Regressions on J vectors over M draws are off by J/M, which many sites make more than the standard errors.
    samples = 2**18 if name == "cnn_flatten" else 2**15
    found = zoo.first(tp.kernels(program, start, x, method="backward", error=True, samples=samples))
    exact = zoo.first(tp.kernels(program, start, x))
    assert (np.abs(found.ntk - exact.ntk) <= 4 * found.error.ntk + 1e-3).all()
    assert (np.abs(found.nngp - exact.nngp) <= 4 * found.error.nngp + 1e-3).all()
    assert np.max(found.error.ntk) < 0.05 * np.max(np.abs(exact.ntk))


@pytest.mark.full
@pytest.mark.slow
def test_quadrature_makes_the_second_road_exact() -> None:
    def net(x: Any) -> Any:
        n = tp.Width("n")
        return tp.weight("v", 1, n) @ tp.nonlin(jnp.tanh, tp.weight("U", n, x.features) @ x + tp.bias("b", n, var=0.2))

    program = tp.trace(net, tp.Input(3))
    x = jnp.array([[1.0, -0.5, 0.3]])
    np.testing.assert_allclose(tp.ntk(program, x, method="backward"), tp.ntk(program, x), rtol=1e-8)


def relu_net(x: Any, mean: float, var: float) -> Any:
    n = tp.Width("n")
    h = tp.nonlin(jax.nn.relu, tp.weight("W", n, n) @ tp.nonlin(jax.nn.relu, tp.weight("U", n, x.features) @ x))
    if var == 0:
        return tp.moment(lambda a: a, h)
    return tp.moment(lambda a, b: a * b, tp.bias("v", n, mean=mean, var=var), h)


@pytest.mark.parametrize(
    ("case", "mean", "var"), [("mu0", 0.0, 1.0), pytest.param("mu1", 1.0, 1.0, marks=SLOW), ("ones", 1.0, 0.0)]
)
def test_ntk_where_gradient_independence_fails(case: str, mean: float, var: float) -> None:
    stored = reference.theory("gia_relu_full_ntk")
    x, limit = jnp.asarray(stored["X"]), np.array(stored[case]["limit"])
    program = tp.trace(relu_net, tp.Input(3), mean=mean, var=var)
    with pytest.raises(tp.ProgramError, match="method='backward'"):
        tp.ntk(program, x)
    np.testing.assert_allclose(tp.ntk(program, x, method="backward"), limit, atol=1e-3)
    assert tp.check(program).independent == (case == "mu0")


@SLOW
def test_ntk_of_w_and_its_transpose_by_finite_networks() -> None:
    program = PROGRAMS["transposes"]
    x = data(program, 2)[0]
    found = tp.kernels(program, x, method="backward", error=True, samples=2**15)
    keys = jax.random.split(jax.random.key(0), 60)
    params = [tp.init(program, k, width=256) for k in keys]
    finite = np.array([tp.empirical.ntk(program, p, x) for p in params])
    error = finite.std(0, ddof=1) / np.sqrt(len(keys))
    assert (np.abs(finite.mean(0) - found.ntk) <= 4 * error + 0.01).all()


@pytest.mark.full
@pytest.mark.slow
def test_derivatives_of_the_second_road() -> None:
    program = PROGRAMS["average"]
    x = data(program, 2)[0]

    def value(s: Any) -> Any:
        moved = program.replace({"W.var": 1.5 + s})
        return tp.ntk(moved, x, method="backward", samples=2**11, convention="init-std").sum()

    h = 1e-5
    np.testing.assert_allclose(jax.grad(value)(0.0), (value(h) - value(-h)) / (2 * h), rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda n, s: s, "a matrix"),
        (lambda n, s: tp.weight("v", 3, n) @ s, "3 rows"),
        (lambda n, s: (tp.weight("v", 1, n) @ s, tp.weight("w", 1, n) @ s), "2 outputs"),
        (lambda n, s: tp.weight("v", 1, n) @ s + tp.moment(lambda z: z, s), "average over the width"),
    ],
)
def test_outputs_without_a_backward_pass(make: Any, why: str) -> None:
    def net(x: Any) -> Any:
        n = tp.Width("n")
        return make(n, tp.nonlin(jnp.tanh, tp.weight("U", n, x.features) @ x))

    with pytest.raises(tp.ProgramError, match=why):
        tp.backprop(tp.trace(net, tp.Input(2)))


def test_an_unknown_road() -> None:
    with pytest.raises(tp.ProgramError, match="no road to the NTK"):
        tp.ntk(ZOO["mlp"], jnp.ones((1, 4)), method="guess")
