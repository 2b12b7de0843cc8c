"""Sites and scalars put in another order or together: each program beside a twin that does without, by three roads."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# (what the types forbid is what is tested here)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agreement

import tensorprog as tp

N = tp.Width("n")
X = np.random.default_rng(3).normal(size=(2, 2, 3, 4))  # 2 examples, sites (2, 3), 4 features
INPUT = tp.Input(2, 3, 4)


def hidden(x: Any) -> Any:
    return tp.nonlin(jax.scipy.special.erf, tp.weight("U", N, x.features, var=1.5) @ x)


def read(h: Any) -> Any:
    return tp.weight("v", 1, N) @ h


# ---- transposed sites


def mixed_transposed(x: Any) -> Any:
    """Mixed along the first axis by way of the last."""
    h = tp.transpose(tp.mix(WEIGHTS, tp.transpose(hidden(x)), axis=1))
    return read(tp.mean(tp.nonlin(jnp.square, tp.weight("W", N, N) @ tp.sum(h, 1) + tp.bias("b", N))))


def mixed(x: Any) -> Any:
    h = tp.mix(WEIGHTS, hidden(x), axis=0)
    return read(tp.mean(tp.nonlin(jnp.square, tp.weight("W", N, N) @ tp.sum(h, 1) + tp.bias("b", N))))


WEIGHTS = np.array([[1.0, -0.5], [0.3, 2.0]])

# ---- scalars rearranged


def scored(x: Any) -> Any:
    """Scores by rows of the other site, rearranged and put together one by one."""
    h = hidden(x)[0]
    scores = tp.inner(h, h)
    rows = [tp.reshape(scores, (9,))[3 * i : 3 * i + 3] for i in range(2)]
    last = tp.transpose(scores)[:, 2]
    both = tp.concat([tp.stack(rows), tp.stack([last])])
    return read(tp.mean(tp.mix(tp.transpose(tp.transpose(tp.stack([both, 2 * both], 2), (2, 1, 0))[0]), h)))


def scored_plainly(x: Any) -> Any:
    h = hidden(x)[0]
    return read(tp.mean(tp.mix(tp.inner(h, h), h)))


# ---- inner products of each head


def heads(x: Any) -> list[Any]:
    """Queries, keys, values of two heads over three tokens; queries meet keys in what both add to."""
    h = hidden(x)
    return [h + tp.weight(name, N, N, var=0.5) @ h for name in "QKV"]


def per_head(x: Any) -> Any:
    q, k, v = heads(x)
    return read(tp.mean(tp.mix(tp.scalar(jax.nn.softmax, tp.inner(q, k, shared=1)), v, axis=1)))


def per_head_of_all_pairs(x: Any) -> Any:
    q, k, v = heads(x)
    own = lambda s: jnp.einsum("hihj->hij", s)
    return read(tp.mean(tp.mix(tp.scalar(jax.nn.softmax, tp.scalar(own, tp.inner(q, k))), v, axis=1)))


def grouped(x: Any) -> Any:
    """Two groups, each of two queries that share its keys."""
    q, k, v = heads(x)
    queries = tp.stack([q, q[:, ::-1]], axis=1)
    scores = tp.inner(queries, k[:, None], shared=2)
    return read(tp.mean(tp.mix(scores, tp.stack([v, 2 * v], axis=1), axis=2)))


def grouped_one_by_one(x: Any) -> Any:
    q, k, v = heads(x)
    plain = [tp.mix(tp.inner(q[g], k[g]), v[g]) for g in (0, 1)]
    squares = [tp.mix(tp.inner(q[g, ::-1], k[g]), 2 * v[g]) for g in (0, 1)]
    return read(tp.mean(tp.stack([*plain, *squares])))


# ---- weights of sites that broadcast


def untied(x: Any) -> Any:
    """A matrix for each head, tokens alike; then one for each of two experts, which all read the same."""
    h = tp.nonlin(jax.scipy.special.erf, tp.weight("H", N, N, sites=(2, 1)) @ hidden(x))
    h = tp.nonlin(jax.nn.relu, tp.weight("E", N, N, sites=(2,)) @ h[0, :, None] + tp.bias("b", N, sites=(2,)))
    return tp.sum(tp.weight("v", 1, N, sites=(3, 1)) @ h) / 3


def untied_in_place(x: Any) -> Any:
    h = tp.weight("H", N, N, sites=(2,)) @ tp.transpose(hidden(x))
    h = tp.nonlin(jax.scipy.special.erf, h)[:, 0]
    h = tp.nonlin(jax.nn.relu, tp.weight("E", N, N, sites=(2,)) @ tp.stack([h, h], 1) + tp.bias("b", N, sites=(2,)))
    return tp.sum(tp.weight("v", 1, N, sites=(3,)) @ tp.transpose(h)) / 3


# ---- a readout that is a vector too


def entered(x: Any) -> Any:
    """A readout of all sites, its entries a bias of the first layer."""
    v = tp.weight("v", 1, N, var=0.7, window=(2, 3))
    h = tp.nonlin(jax.scipy.special.erf, tp.weight("U", N, x.features, var=1.5) @ x + tp.entries(v))
    return tp.conv(v, tp.nonlin(jnp.square, tp.weight("W", N, N) @ h), padding="VALID")[0, 0]


def entered_apart(x: Any) -> Any:
    v = tp.weight("v", 1, N, var=0.7, window=(2, 3))
    bias = tp.bias("e", N, var=0.7 / 6, sites=(2, 3))
    h = tp.nonlin(jax.scipy.special.erf, tp.weight("U", N, x.features, var=1.5) @ x + bias)
    return tp.conv(v, tp.nonlin(jnp.square, tp.weight("W", N, N) @ h), padding="VALID")[0, 0]


CASES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "transposed sites": (mixed_transposed, mixed),
    "scalars rearranged": (scored, scored_plainly),
    "inner products of heads": (per_head, per_head_of_all_pairs),
    "queries in groups": (grouped, grouped_one_by_one),
    "weights that broadcast": (untied, untied_in_place),
    "a readout's entries": (entered, entered_apart),
}
ALIKE = [name for name in CASES if name != "a readout's entries"]  # those whose twin has the same parameters


@pytest.mark.parametrize("name", CASES)
def test_kernels_are_those_of_the_twin(name: str) -> None:
    program, twin = (tp.trace(fn, INPUT) for fn in CASES[name])
    found, expected = tp.kernels(program, X), tp.kernels(twin, X)
    np.testing.assert_allclose(found.nngp, expected.nngp, rtol=1e-12)
    np.testing.assert_allclose(found.ntk, expected.ntk, rtol=1e-12)


@pytest.mark.parametrize("name", ALIKE)
def test_finite_networks_are_those_of_the_twin(name: str) -> None:
    """The same parameters, the same outputs and the same derivatives by hand and by JAX."""
    program, twin = (tp.trace(fn, INPUT) for fn in CASES[name])
    params, same = (tp.init(p, jax.random.key(0), 6) for p in (program, twin))
    np.testing.assert_allclose(tp.apply(program, params, X), tp.apply(twin, same, X), rtol=1e-12)
    np.testing.assert_allclose(tp.empirical.ntk(program, params, X), tp.empirical.ntk(twin, same, X), rtol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_the_backward_pass_is_jax_s(name: str) -> None:
    """The first weight's gradient is Σ dg1 xᵀ over sites, by JAX and by the backward program."""
    program, n = tp.trace(CASES[name][0], INPUT), 5
    params = tp.init(program, jax.random.key(1), n)
    by_jax = jax.grad(lambda p: tp.apply(program, p, X[:1])[0])(params)["U"]
    dg = tp.apply(tp.backprop(program), params, X[:1])[0][0]
    by_program = np.einsum("stn,std->nd", dg, X[0]) * np.sqrt(1.5 / INPUT.features / n)
    np.testing.assert_allclose(by_program, by_jax, rtol=1e-10, atol=1e-13)


def finite(program: tp.Program, width: int, seeds: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """The mean NTK of finite networks, and its variance."""
    one = lambda key: tp.empirical.ntk(program, tp.init(program, key, width), X)
    kernels = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(width), seeds)))
    return kernels.mean(0), kernels.var(0, ddof=1) / seeds


@pytest.mark.parametrize("name", CASES)
def test_finite_kernels_tend_to_the_limit(name: str) -> None:
    """Of two widths, so that what is of order 1/n cancels."""
    program = tp.trace(CASES[name][0], INPUT)
    (wide, var), (narrow, more) = finite(program, 256), finite(program, 128)
    limit, error = np.asarray(tp.ntk(program, X)), np.sqrt(4 * var + more)
    assert (np.abs(2 * wide - narrow - limit) <= 4 * error).all()
    assert error.max() < 0.1 * np.abs(limit).max()


@pytest.mark.parametrize("name", CASES)
def test_the_backward_road_agrees(name: str) -> None:
    found = agreement(tp.trace(CASES[name][0], INPUT), X, samples=2**12)
    assert found, str(found)


@pytest.mark.parametrize("fn", [lambda h: h, jnp.tanh], ids=["exact", "integrated"])
def test_limits_of_inner_products_of_heads(fn: Any) -> None:
    """One limit for each head and pair of tokens, those of the plain inner product's diagonal."""

    def net(x: Any) -> Any:
        h = tp.weight("W", N, N) @ tp.nonlin(fn, tp.weight("U", N, x.features) @ x) + tp.bias("b", N)
        return tp.inner(h, h, shared=1), tp.inner(h, h), tp.inner(x, x, shared=2) * tp.moment(jnp.square, h)

    each, pairs, features = tp.limit(tp.trace(net, INPUT), X).value
    np.testing.assert_allclose(each, np.einsum("bhihj->bhij", pairs), rtol=1e-10)
    squares = np.einsum("bhihi->bhi", pairs)
    np.testing.assert_allclose(features, squares * np.einsum("bhif,bhif->bhi", X, X) / 4, rtol=1e-10)


def test_entries_are_the_readout_s() -> None:
    """√n of the matrix that reads: the parameter itself, times its scale, whatever the width."""
    declared = {"plain": {}, "scaled": {"scale": 0.5}, "at sites": {"sites": (2,)}, "over a window": {"window": (3,)}}
    for name, options in declared.items():
        program = tp.trace(lambda o=options: tp.entries(tp.weight("v", 1, N, var=2.0, **o)))
        params = tp.init(program, jax.random.key(0), 7)
        scale = options.get("scale", np.sqrt(2.0)) / np.sqrt(np.prod(options.get("window", (1,))))
        np.testing.assert_allclose(tp.apply(program, params), scale * params["v"][..., 0, :], rtol=1e-12, err_msg=name)
        assert "= √n vᵀ" in str(program)


def test_empirical_kernels_of_a_readout_s_entries() -> None:
    """The covariance given all but the readout holds its entries, which are in what it reads; the NTK has both uses."""
    program, twin = (tp.trace(fn, INPUT) for fn in CASES["a readout's entries"])
    params = tp.init(program, jax.random.key(0), 16)
    same = {**params, "e": params["v"][..., 0, :]}
    np.testing.assert_allclose(tp.empirical.nngp(program, params, X), tp.empirical.nngp(twin, same, X), rtol=1e-10)
    jacobian = jax.jacobian(lambda q: tp.apply(program, q, X))(params)
    flat = np.concatenate([np.asarray(leaf).reshape(2, -1) for leaf in jax.tree.leaves(jacobian)], 1)
    np.testing.assert_allclose(tp.empirical.ntk(program, params, X), flat @ flat.T, rtol=1e-10)


def test_gradients_written_by_hand() -> None:
    """√n ∂f/∂h of f = v·tanh(h)/√n in one program with f, its NNGP, and the NTK that both outputs have alone."""

    def net(x: Any) -> Any:
        v, h = tp.weight("v", 1, N, var=0.7), tp.weight("U", N, x.features) @ x
        return v @ tp.nonlin(jnp.tanh, h), tp.entries(v) * tp.nonlin(jax.grad(jnp.tanh), h)

    program, x = tp.trace(net, tp.Input(4)), X[:, 0, 0]
    back = tp.backprop(tp.trace(lambda x: net(x)[0], tp.Input(4)))
    params = tp.init(program, jax.random.key(0), 5)
    by_hand, by_backprop = tp.apply(program, params, x)[1], tp.apply(back, params, x)[0]
    np.testing.assert_allclose(by_hand, by_backprop, rtol=1e-12)
    found, slopes = tp.nngp(program, x)[1], tp.nngp(tp.trace(lambda x: net(x)[1], tp.Input(4)), x)
    gradients = np.asarray(tp.ntk_by_parameter(tp.trace(lambda x: net(x)[0], tp.Input(4)), x)["U"])
    np.testing.assert_allclose(found, slopes, rtol=1e-12)
    np.testing.assert_allclose(found * (x @ x.T / 4), gradients, rtol=1e-9)


def own(x: Any) -> Any:
    v = tp.weight("v", 1, N)
    return v @ tp.nonlin(jnp.tanh, tp.weight("U", N, x.features) @ x + tp.entries(v))


def test_a_readout_of_its_own_entries_is_refused() -> None:
    """Σ v_α tanh(h_α + v_α)/√n grows like √n; its mean is a Moment, and another readout is none of this."""
    program, x = tp.trace(own, tp.Input(4)), X[:, 0, 0]
    assert not tp.check(program).gia
    sizes = []
    for width in (64, 1024):
        one = lambda key, width=width: tp.apply(program, tp.init(program, key, width), x)
        sizes.append(np.abs(jax.vmap(one)(jax.random.split(jax.random.key(0), 64))).mean(0))
    assert (np.abs(sizes[1] / sizes[0] - 4) < 1).all()
    with pytest.raises(tp.ProgramError, match="its own entries are added to") as told:
        tp.ntk(program, x)
    assert "tp.moment(lambda v, x: v * x, tp.entries(v), x)" in str(told.value)

    def averaged(x: Any) -> Any:
        v = tp.weight("v", 1, N)
        h = tp.nonlin(jnp.tanh, tp.weight("U", N, x.features) @ x + tp.entries(v))
        return tp.moment(lambda v, x: v * x, tp.entries(v), h)

    program = tp.trace(averaged, tp.Input(4))
    found = tp.limit(program, x)
    assert (np.abs(found.value - sizes[1] / 32) < 0.02).all()
    assert np.isfinite(tp.ntk(program, x, method="backward")).all()
    with pytest.raises(tp.ProgramError, match=r"entries\(v\)[\s\S]*v = tp.bias\('v', n\)"):
        tp.sgd_step(program, lambda f: (f**2).sum(), 0.1, batch=2)


def test_sampled_kernels_refuse_entries() -> None:
    steep = lambda a, b, c: jnp.tanh(a * b + c)

    def net(x: Any, entries: Callable[[Any], Any]) -> Any:
        v = tp.weight("v", 1, N)
        a, b, c = (tp.weight(name, N, x.features) @ x for name in "ABC")
        h = tp.nonlin(steep, a, b, c + entries(v))
        return v @ tp.nonlin(jnp.tanh, tp.weight("W", N, N) @ h)

    x = X[:, 0, 0]
    with pytest.raises(tp.ProgramError, match=r"entries\(v\)[\s\S]*no rule") as told:
        tp.nngp(tp.trace(net, tp.Input(4), entries=tp.entries), x)
    assert "take tp.kernels(program, x, method='backward'), or declare the vector apart" in str(told.value)
    program, apart = (tp.trace(net, tp.Input(4), entries=e) for e in (tp.entries, lambda v: tp.bias("b", N)))
    backward = tp.kernels(program, x, method="backward", error=True, samples=4096)
    apart = tp.kernels(apart, x, error=True, samples=4096)
    assert (np.abs(backward.nngp - apart.nngp) <= 4 * (backward.error.nngp + apart.error.nngp)).all()
    assert (np.abs(backward.ntk - apart.ntk) <= 4 * (backward.error.ntk + apart.error.ntk)).all()
