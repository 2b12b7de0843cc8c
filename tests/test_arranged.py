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


CASES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "transposed sites": (mixed_transposed, mixed),
    "scalars rearranged": (scored, scored_plainly),
    "inner products of heads": (per_head, per_head_of_all_pairs),
    "queries in groups": (grouped, grouped_one_by_one),
    "weights that broadcast": (untied, untied_in_place),
}


@pytest.mark.parametrize("name", CASES)
def test_kernels_are_those_of_the_twin(name: str) -> None:
    program, twin = (tp.trace(fn, INPUT) for fn in CASES[name])
    found, expected = tp.kernels(program, X), tp.kernels(twin, X)
    np.testing.assert_allclose(found.nngp, expected.nngp, rtol=1e-12)
    np.testing.assert_allclose(found.ntk, expected.ntk, rtol=1e-12)


@pytest.mark.parametrize("name", CASES)
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
