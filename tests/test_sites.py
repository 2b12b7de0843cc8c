"""Matrices over sites, inner products, per-example data: what they compute, how they print, what is refused."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# (what the types forbid is what is tested here)

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp

N = 4
Body = Callable[[Any], Any]
SITES, DATA = (2, 3), (3, 3)
RNG = np.random.default_rng(0)
X, A, M = RNG.normal(size=(2, *SITES, 3)), RNG.normal(size=(2, *DATA)), RNG.integers(0, 2, size=(2, 3))


def network(body: Body) -> Callable[..., Any]:
    """A program around `body`, which gets x and h over sites (2, 3), data a (3, 3) and m (3,)."""

    def fn(x, a, m):
        n = tp.Width("n")
        h = tp.weight("U", n, x.features) @ x
        return body(SimpleNamespace(x=x, a=a, m=m, n=n, h=h, s=tp.nonlin(jnp.tanh, h), W=tp.weight("W", n, n)))

    return fn


def trace(body: Body) -> tp.Program:
    return tp.trace(network(body), tp.Input(*SITES, 3), tp.Data(*DATA), tp.Data(3))


def run(body: Body) -> tuple[Any, np.ndarray]:
    """What a body's finite network computes for two examples, and their h (2, *sites, n)."""
    program, hidden = trace(body), trace(lambda e: e.h)
    params = tp.init(program, jax.random.key(0), width=N)
    y, h = jax.jit(lambda q: (tp.apply(program, q, (X, A, M)), tp.apply(hidden, q, (X, A, M))))(params)
    return y, np.asarray(h)


# ---- values

B = RNG.normal(size=(4, 2, 3))


def scores(h: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.softmax(np.einsum("bin,bjn->bij", h[:, 0], np.tanh(h[:, 1])) / N))


def pairs_of_inputs(h: np.ndarray) -> np.ndarray:
    return (X[:, 0] @ X[:, 1].swapaxes(1, 2) / 3)[:, None, ..., None] * h[:, :, None]


BOTH = A**2 / (A**2).sum(1, keepdims=True)
VALUES: dict[str, tuple[Body, Callable[[np.ndarray], Any]]] = {
    "mix along the first axis": (
        lambda e: tp.mix(B[:, 0, :2], e.h), lambda h: np.einsum("ij,bjtn->bitn", B[:, 0, :2], h)
    ),
    "mix along the last axis": (lambda e: tp.mix(B[0], e.h, axis=-1), lambda h: np.einsum("ij,btjn->btin", B[0], h)),
    "mix by data": (lambda e: tp.mix(e.a, e.h, axis=1), lambda h: np.einsum("bij,btjn->btin", A, h)),
    "a matrix for each site before": (lambda e: tp.mix(B[:2], e.h, 1), lambda h: np.einsum("tij,btjn->btin", B[:2], h)),
    "more heads than the vector has": (lambda e: tp.mix(B, e.h[0]), lambda h: np.einsum("kij,bjn->bkin", B, h[:, 0])),
    "mix by scores": (
        lambda e: tp.mix(tp.scalar(jax.nn.softmax, tp.inner(e.h[0], e.s[1])), e.h, axis=1),
        lambda h: np.einsum("bij,btjn->btin", scores(h), h),
    ),
    "mix by one jax array": (lambda e: tp.mix(jnp.ones((1, 3)), e.h, 1), lambda h: h.sum(2, keepdims=True)),
    "transposed": (lambda e: tp.transpose(e.h[:, :, None], (2, 0, 1)), lambda h: h[:, None]),
    "transposed in reverse": (lambda e: tp.transpose(e.h), lambda h: h.swapaxes(1, 2)),
    "data transposed": (lambda e: tp.mix(tp.transpose(e.a), e.h, 1), lambda h: np.einsum("bji,btjn->btin", A, h)),
    "data reshaped": (
        lambda e: tp.reshape(e.a, (-1, 1, 3)) * e.h[0], lambda h: A[:, :, None, :, None] * h[:, :1, None]
    ),
    "data and numbers stacked": (
        lambda e: tp.stack([e.m, np.arange(3.0)], axis=1) * e.h[0, :, None],
        lambda h: np.stack([M, np.broadcast_to(np.arange(3.0), M.shape)], 2)[..., None] * h[:, 0, :, None],
    ),
    "products of data end to end": (
        lambda e: tp.concat([2 * e.m, e.a[0, 1:]]) * e.h[0, :1],
        lambda h: np.concatenate([2 * M, A[:, 0, 1:]], 1)[..., None] * h[:, 0, :1],
    ),
    "inner of all pairs": (lambda e: tp.inner(e.h, e.s), lambda h: np.einsum("bstn,buvn->bstuv", h, np.tanh(h)) / N),
    "inner of each site of the first axis": (
        lambda e: tp.inner(e.h, e.s, shared=1), lambda h: np.einsum("bstn,bsvn->bstv", h, np.tanh(h)) / N
    ),
    "inner of broadcast heads": (
        lambda e: tp.inner(e.h[:1], e.s[:, ::2], shared=1),
        lambda h: np.einsum("btn,bsvn->bstv", h[:, 0], np.tanh(h)[:, :, ::2]) / N,
    ),
    "inner of an input": (lambda e: tp.inner(e.x[0], e.x[1]) * e.h[:, None], pairs_of_inputs),
    "a mask": (lambda e: e.m * e.h, lambda h: M[:, None, :, None] * h),
    "arithmetic of data": (
        lambda e: (2 * e.a - e.m / 4 + 1) * e.h[0][:, None],
        lambda h: (2 * A - M[:, None] / 4 + 1)[..., None] * h[:, 0, :, None],
    ),
    "data under a fraction": (
        lambda e: e.h[0] / (1 + e.m) - e.m, lambda h: h[:, 0] / (1 + M)[..., None] - M[..., None]
    ),
    "numbers over data": (
        lambda e: e.h[0] * (3 - e.m) * (-e.m) + 1 / (1 + e.m),
        lambda h: h[:, 0] * ((M - 3) * M)[..., None] + (1 / (1 + M))[..., None],
    ),
    "a function of data": (
        lambda e: tp.mix(tp.scalar(lambda a: a / a.sum(0), e.a * e.a), e.h, 1),
        lambda h: np.einsum("bij,btjn->btin", BOTH, h),
    ),
    "data in a nonlinearity": (
        lambda e: tp.nonlin(lambda z, m: jnp.tanh(z) * m, e.h, scalars=(e.m,)),
        lambda h: np.tanh(h) * M[:, None, :, None],
    ),
    "data seen whole": (
        lambda e: tp.nonlin(lambda z, m: (z * m).max(), e.h, scalars=(e.m,), over=1),
        lambda h: (h * M[:, None, :, None]).max(2),
    ),
    "data in a moment": (
        lambda e: tp.moment(lambda z, m: m * z**2, e.h, scalars=(e.m,)), lambda h: M[:, None] * (h**2).mean(-1)
    ),
    "iteration over data": (
        lambda e: sum(row[0] * e.h for row in e.a), lambda h: A[:, :, 0].sum(1)[:, None, None, None] * h
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_values(name: str) -> None:
    body, expected = VALUES[name]
    y, h = run(body)
    want = np.asarray(expected(h))
    assert y.shape == want.shape
    np.testing.assert_allclose(y, want, atol=1e-12)


def test_indices_of_data_are_numpy_s() -> None:
    index = np.array([[0, 2], [1, 1]])
    picks: list[Callable[[Any], Any]] = [
        lambda a: a[0], lambda a: a[1, 2], lambda a: a[::-1, None], lambda a: a[..., 1], lambda a: a[index],
        lambda a: a[-1:],
    ]  # fmt: skip
    y, _ = run(lambda e: tuple(tp.moment(lambda z, a: a, e.h[0, 0], scalars=(pick(e.a),)) for pick in picks))
    for found, pick in zip(y, picks, strict=True):
        np.testing.assert_allclose(found, np.stack([pick(a) for a in A]), atol=1e-15)


def test_mix_of_an_input_before_its_weight() -> None:
    """A graph's features are added up over neighbours before the first layer reads them."""
    program = trace(lambda e: tp.weight("V", e.n, 3) @ tp.mix(e.a, e.x, axis=1))
    params = tp.init(program, jax.random.key(0), width=N)
    expected = np.einsum("bij,btjd,nd->btin", A, X, params["V"]) / math.sqrt(3)
    np.testing.assert_allclose(tp.apply(program, params, (X, A, M)), expected, atol=1e-12)


def test_biases_of_sites_are_added_where_they_stand() -> None:
    program = trace(lambda e: tp.bias("b", e.n, sites=(3,)) + e.h * tp.bias("c", e.n, sites=(2, 1)))
    params = tp.init(program, jax.random.key(0), width=N)
    h = tp.apply(trace(lambda e: e.h), params, (X, A, M))
    np.testing.assert_allclose(tp.apply(program, params, (X, A, M)), params["b"] + h * params["c"], atol=1e-12)


# ---- data as users hand them over


def readout(e: Any) -> Any:
    return tp.weight("v", 1, e.n) @ tp.mean(tp.mix(e.a, e.s, 1) * e.m)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_data_of_any_dtype_take_the_inputs(dtype: str) -> None:
    program = trace(readout)
    params = tp.init(program, jax.random.key(0), width=N)
    exact = tp.apply(program, params, (X, A > 0, M))
    for adjacency in (A > 0, (A > 0).astype(np.int32), (A > 0).astype(np.float64), (A > 0).tolist()):
        for mask in (M, M > 0, M.astype(np.float32)):
            found = tp.apply(program, params, (X.astype(dtype), adjacency, mask))
            assert found.dtype == dtype
            np.testing.assert_allclose(found, exact, rtol=1e-5 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ((X, A[:, :2], M), r"x: has shape \(2, 2, 3\), the program's data a is \(N, 3, 3\): sites .* another tp.Data"),
        ((X, A[0], M), r"the program's data a is \(N, 3, 3\); add the batch axis"),
        ((X[..., :2], A, M), r"the program's input x is \(N, 2, 3, 3\): features .* another tp.Input"),
        ((X, A, M[:1]), "different numbers of examples"),
        ((X, A * np.nan, M), "NaN or infinite"),
        ((X, A), "2 arrays for 3 inputs"),
        (None, r"give an array \(N, 2, 3, 3\), \(N, 3, 3\), \(N, 3\)"),
    ],
)
def test_data_that_do_not_fit(data: Any, text: str) -> None:
    program = trace(readout)
    with pytest.raises(tp.ProgramError, match=text):
        tp.apply(program, tp.init(program, jax.random.key(0), width=N), data)


def test_one_number_for_each_example() -> None:
    program = tp.trace(lambda x, t: t * (tp.weight("v", 1, x.features) @ x), tp.Input(3), tp.Data())
    params = tp.init(program, jax.random.key(0), width=N)
    x, t = X[:, 0, 0], np.array([2.0, -1.0])
    np.testing.assert_allclose(tp.apply(program, params, (x, t)), t * (x @ params["v"][0]) / math.sqrt(3), rtol=1e-12)


def test_data_without_any_input() -> None:
    """A bias is what such a program starts from."""
    n = tp.Width("n")
    program = tp.trace(lambda a: tp.weight("v", 1, n) @ (a[0] * tp.bias("b", n)), tp.Data(2))
    params = tp.init(program, jax.random.key(0), width=N)
    y = tp.apply(program, params, np.array([[2, 0], [3, 0]]))
    np.testing.assert_allclose(y, np.array([2.0, 3.0]) * (params["v"][0] @ params["b"]) / math.sqrt(N), rtol=1e-12)


def test_the_limit_of_a_program_with_data() -> None:
    program = trace(
        lambda e: tp.moment(jnp.square, tp.mix(e.a, e.W @ (tp.nonlin(jax.scipy.special.erf, e.h) * e.m), 1))
    )
    found = tp.limit(program, (X, A, M), samples=2**16)
    gram = np.einsum("bstd,bsud->bstu", X, X) / 3
    norm = np.einsum("bstt->bst", gram)
    kernel = 2 / np.pi * np.arcsin(2 * gram / np.sqrt((1 + 2 * norm[..., None]) * (1 + 2 * norm[:, :, None])))
    exact = np.einsum("bij,bj,bsjk,bk,bik->bsi", A, M, kernel, M, A)
    assert (np.abs(found.value - exact) <= 4 * found.stderr + 1e-3).all()


def test_check_takes_data() -> None:
    assert tp.check(trace(readout)).ok
    averaged = tp.check(trace(lambda e: tp.moment(lambda z, m: m * z, tp.mix(e.a, e.W @ e.s, 1), scalars=(e.m,))))
    assert not averaged.gia and averaged.response is not None
    scaled = trace(lambda e: e.m[0] * readout(e) + e.m[1])
    assert tp.check(scaled).gia, "data are no average over the width"


def test_empirical_kernels_of_data() -> None:
    program = trace(readout)
    params = tp.init(program, jax.random.key(0), width=N)
    jacobian = jax.jacobian(lambda q: tp.apply(program, q, (X, A, M)))(params)
    flat = np.concatenate([np.asarray(leaf).reshape(2, -1) for leaf in jax.tree.leaves(jacobian)], 1)
    np.testing.assert_allclose(tp.empirical.ntk(program, params, (X, A, M)), flat @ flat.T, rtol=1e-10)


# ---- the listing


def last(body: Body) -> str:
    return str(trace(body)).splitlines()[-2].split(" = ", 1)[1].split("   ")[0].rstrip()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (lambda e: e.W @ tp.mix(e.a, e.s, 1), "W mix(a, s1)"),
        (lambda e: e.W @ tp.mix(e.a * e.m, e.s[0]), "W mix(a m, s1[0])"),
        (lambda e: tp.mix(B[0], e.s, 1), "mix(array(2 × 3), s1)"),
        (lambda e: e.m * e.s, "m s1"),
        (lambda e: tp.inner(e.h[0], e.h[1], shared=1) * e.h, "c1 g1"),
        (lambda e: tp.weight("H", e.n, e.n, sites=(2, 1)) @ e.s, "H s1"),
        (lambda e: 2 * (tp.weight("H", e.n, e.n, sites=(3,)) @ (e.s[0, :, None] + 1)), "2 H (s1[0, :, None] + 1)"),
        (lambda e: tp.transpose(e.a) * e.s[0], "transpose(a) s1[0]"),
        (lambda e: tp.reshape(e.m + 1, (3, 1)) * e.s[0], "reshape(m + 1; 3 × 1) s1[0]"),
        (lambda e: tp.stack([e.m, e.a[0]], 1)[0] * e.s[0, 0], "stack(m, a[0]; axis 1)[0] s1[0, 0]"),
        (lambda e: e.W @ tp.transpose(e.s, (-1, 0)), "W transpose(s1; 1, 0)"),
        (lambda e: (1 - e.m[0]) * e.s, "(1 − m[0]) s1"),
        (lambda e: tp.conv(tp.weight("C", e.n, e.n, window=(3,)), e.s), "conv(C, s1; 3, SAME)"),
        (
            lambda e: tp.conv(tp.weight("C", e.n, e.n, window=(2, 2)), e.s, (1, 2), "CIRCULAR", 2),
            "conv(C, s1; 2 × 2, strides 1 × 2, dilation 2, CIRCULAR)",
        ),
        (
            lambda e: tp.conv_transpose(tp.weight("C", e.n, e.n, window=(3,)), e.s, 2) - 1,
            "conv_transpose(C, s1; 3, strides 2, SAME) − 1",
        ),
        (
            lambda e: tp.conv_local(tp.weight("C", e.n, e.n, window=(3,), sites=(1,)), e.s),
            "conv_local(C, s1; 3, VALID)",
        ),
        (lambda e: e.W @ tp.pool(e.s, 2, padding="SAME"), "W pool(s1; 2, SAME)"),
        (lambda e: e.W @ tp.pool(e.s, 2, kind="sum"), "W sum(patches(s1; 2, VALID); over axis 2)"),
        (lambda e: e.W @ tp.pad(e.s, 1), "W pad(s1; 1)"),
        (lambda e: e.W @ tp.pad(e.s, ((0, 1), (2, 0))), "W pad(s1; (0, 1), (2, 0))"),
    ],
)
def test_listing(body: Body, text: str) -> None:
    assert last(body) == text


def test_header_and_declarations() -> None:
    def gcn(x, a, t):
        n = tp.Width("n")
        C = tp.weight("C", n, x.features, window=(3,), var=2.0)
        h = tp.conv(C, tp.mix(a, x)) * t
        return tp.conv(tp.weight("v", 1, n, window=(5,)), h, padding="VALID")[0]

    lines = str(tp.trace(gcn, tp.Input(5, 4), tp.Data(5, 5), tp.Data())).splitlines()
    assert lines[0].startswith("gcn(x: 5 × 4, a: data 5 × 5, t: data)  ")
    assert " ".join(lines[1].split()) == "C 3 × n × 4 N(0, 2/12) v 5 × 1 × n N(0, 1/(5 n))"
    assert lines[2].startswith("  return (conv(v, t conv(C, mix(a, x); 3, SAME); 5, VALID))[0]")


@pytest.mark.parametrize("fn", [lambda h: h, lambda h: tp.nonlin(jax.nn.relu, h)], ids=["linear", "relu"])
@pytest.mark.parametrize("sites", [(), pytest.param((3,), marks=pytest.mark.slow)], ids=["one mean", "a mean a site"])
def test_a_sum_over_sites_sums_the_means_of_biases(fn: Any, sites: tuple[int, ...]) -> None:
    """h = Σ_s (U x_s + b_s) has the mean Σ_s m, whether b is one bias or has its own at each site."""

    def f(x: Any) -> Any:
        n = tp.Width("n")
        g = tp.weight("U", n, x.features) @ x + tp.bias("b", n, var=0.2, mean=0.3, sites=sites)
        return tp.weight("v", 1, n) @ fn(tp.sum(g + 0.1 * np.arange(3)))

    def by_hand(x: Any) -> Any:
        n = tp.Width("n")
        var = 0.2 * (9 if sites == () else 3)
        g = tp.weight("U", n, x.features) @ tp.sum(x) + tp.bias("b", n, var=var, mean=3 * 0.3 + 0.1 * 3)
        return tp.weight("v", 1, n) @ fn(g)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 2)))
    np.testing.assert_allclose(
        tp.nngp(tp.trace(f, tp.Input(3, 2)), x), tp.nngp(tp.trace(by_hand, tp.Input(3, 2)), x), rtol=1e-10
    )


@pytest.mark.parametrize("axes", [[0, 1], range(2), np.array([1, 0]), (np.int64(0), -1)], ids=str)
def test_axes_come_in_any_list(axes: Any) -> None:
    assert last(lambda e: tp.mean(e.h, axis=axes)) == last(lambda e: tp.mean(e.h))
    assert last(lambda e: tp.nonlin(jnp.max, e.h, over=axes)) == last(
        lambda e: tp.nonlin(jnp.max, e.h, over=tuple(axes))
    )


def test_a_matrix_over_sites_may_be_a_list() -> None:
    assert last(lambda e: tp.mix([[1, 2]], e.h)) == last(lambda e: tp.mix(np.array([[1.0, 2.0]]), e.h))


# ---- what is refused, at the user's line

REFUSED: list[tuple[Body, tuple[str, ...]]] = [
    (lambda e: tp.mix(np.ones((2, 4)), e.h, 1), ("A has shape (2, 4)", "axis 1 of the sites (2, 3) has 3", "(I, 3)")),
    (lambda e: tp.mix(e.a, e.h), ("A has shape (3, 3), axis 0 of the sites (2, 3) has 2",)),
    (lambda e: tp.mix(np.ones(3), e.h, 1), ("A has shape (3,)", "(I, 3)")),
    (lambda e: tp.mix(np.ones((3, 3, 3)), e.h, 1), ("leading axes do not broadcast", "(2,) before axis 1")),
    (lambda e: tp.mix(e.a, e.h, axis=2), ("axis=2 names a site axis that sites (2, 3) do not have",)),
    (lambda e: tp.mix(e.a, e.h, axis="node"), ("'node' is no axis",)),
    (lambda e: tp.mix(e.a, e.h, axis=None), ("None is no axis",)),
    (lambda e: tp.mix(e.h, e.a), ("mix(A, x)", "is no vector of the program", "tp.Input(…)")),
    (lambda e: tp.mix([[1.0]], e.h), ("A has shape (1, 1)",)),
    (lambda e: tp.mix([[1.0, 2.0], [3.0]], e.h), ("is no matrix over sites",)),
    (lambda e: tp.mean(e.h, axis=True), ("axis=True names a site axis",)),
    (lambda e: tp.sum(e.h, axis=(0, -2)), ("axis=(0, -2) names an axis twice",)),
    (lambda e: tp.nonlin(jnp.max, e.h, over=True), ("over=True names a site axis",)),
    (lambda e: np.ones((3, 3)) @ e.h, ("tp.mix(A, x)",)),
    (lambda e: tp.inner(e.h, e.s, shared=3), ("2 and 2 site axes, (2, 3) and (2, 3)", "from 0 to 2")),
    (lambda e: tp.inner(e.h, e.s, shared=True), ("shared=True", "from 0 to 2")),
    (lambda e: tp.inner(e.h, e.s, shared=(0,)), ("shared=(0,)", "from 0 to 2")),
    (lambda e: tp.inner(e.h, tp.transpose(e.h), shared=1), ("(2, 3) and (3, 2) do not broadcast", "tp.transpose")),
    (lambda e: tp.transpose(e.h, (0,)), ("axes=(0,) names 1 of the 2 site axes (2, 3)",)),
    (lambda e: tp.transpose(e.a, (0, 0)), ("axes=(0, 0) names an axis twice",)),
    (lambda e: tp.transpose(e.a, (0, 2)), ("axes=(0, 2) names a site axis that sites (3, 3) do not have",)),
    (lambda e: tp.transpose(e.W), ("is no vector of the program",)),
    (lambda e: tp.reshape(e.a, (2, 4)), ("reshape(θ; 2 × 4)", "cannot reshape array")),
    (lambda e: tp.stack([e.m, e.h]), ("vectors and scalars stand in one list",)),
    (lambda e: tp.stack([e.m, e.a]), ("stack(θ, θ)", "sites of shape (3,), (3, 3)")),
    (lambda e: tp.concat([e.m, None]), ("None is no scalar", "a number, an array over sites")),
    (lambda e: e.a @ e.h, ("θ @ …",)),
    (lambda e: e.h * e.a[:2, :2], ("sites of shapes (2, 3) and (2, 2) do not broadcast",)),
    (lambda e: e.W @ e.a, ("has no features", "tp.Input(*sites, features)")),
    (lambda e: tp.weight("V", e.n, e.a.features) @ e.a, ("no attribute 'features'", "tp.Input(*sites, features)")),
    (lambda e: tp.nonlin(jnp.tanh, e.h, e.a), ("is no vector of the program", "scalars=(")),
    (lambda e: tp.sum(e.a), ("is no vector of the program", "tp.scalar(jnp.sum, θ)")),
    (lambda e: e.a[5], ("θ[5]", "out of bounds")),
    (lambda e: e.a[0, 0, 0], ("too many indices",)),
    (lambda e: e.a > 0, ("comparison",)),
    (lambda e: tp.inner(e.h, np.ones(3)), ("inner(x, y)", "is no vector of the program")),
    (lambda e: tp.inner(e.h, e.x), ("an input is used as a wide vector",)),
    (lambda e: tp.inner(*[tp.weight("v", 1, e.n) @ e.h] * 2), ("a readout is used inside the network",)),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(REFUSED)))
def test_refused(index: int) -> None:
    body, texts = REFUSED[index]
    with pytest.raises(tp.ProgramError) as caught:
        trace(body)
    message = str(caught.value)
    assert message.startswith(f"{__file__}:{body.__code__.co_firstlineno}:"), message
    for text in texts:
        assert text in message, message


@pytest.mark.parametrize(
    "body", [lambda e: e.a, lambda e: 2 * e.a[0], lambda e: tp.inner(e.x, e.x), lambda e: (e.s, e.m)]
)
def test_data_are_no_output(body: Body) -> None:
    with pytest.raises(tp.ProgramError, match="the output is data, or a function of data alone"):
        trace(body)


@pytest.mark.parametrize("value", [3, (3, 3), np.ones(3)])
def test_what_describes_no_input(value: Any) -> None:
    with pytest.raises(tp.ProgramError, match=r"describes no input; write tp.Input.*tp.Data\(\*shape\)"):
        tp.trace(lambda x: x, value)


@pytest.mark.parametrize("shape", [(0,), (-1, 2), (2.0,), ("a",), (True,)])
def test_shapes_of_data(shape: Any) -> None:
    with pytest.raises(tp.ProgramError, match="no shape of one example"):
        tp.Data(*shape)


# ---- limits of convolutions


def erf_kernel(cross: np.ndarray, own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E erf(u)erf(v) and E erf′(u)erf′(v) for all pairs of sites (B, B, S, S), variances (B, S)."""
    a, b = 1 + 2 * own[:, None, :, None], 1 + 2 * other[None, :, None, :]
    return 2 / np.pi * np.arcsin(2 * cross / np.sqrt(a * b)), 4 / np.pi / np.sqrt(a * b - 4 * cross**2)


def window_mean(kernel: np.ndarray) -> np.ndarray:
    """The mean over a window of three of K[s + o, t + o], zeros around the sites (SAME)."""
    around = np.pad(kernel, [(0, 0), (0, 0), (1, 1), (1, 1)])
    return np.sum([around[:, :, o : o + kernel.shape[2], o : o + kernel.shape[3]] for o in range(3)], 0) / 3


def cnn_kernels(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """NNGP and NTK of two convolutions (variances 2 and 1.5, bias 0.1) with erf and a Flatten readout, (B, B)."""
    nngp = tangent = window_mean(2.0 * np.einsum("asd,btd->abst", x, x) / x.shape[-1]) + 0.1
    for layer in (1, 2):
        own = np.einsum("aass->as", nngp)
        nngp, slope = erf_kernel(nngp, own, own)
        tangent = slope * tangent
        if layer == 1:
            nngp = 1.5 * window_mean(nngp)
            tangent = nngp + 1.5 * window_mean(tangent)
    flat = np.einsum("abss->ab", nngp) / x.shape[1]
    return flat, flat + np.einsum("abss->ab", tangent) / x.shape[1]


def cnn(x: Any) -> Any:
    n = tp.Width("n")
    h = tp.conv(tp.weight("W1", n, x.features, window=(3,), var=2.0), x) + tp.bias("b", n, var=0.1)
    h = tp.conv(tp.weight("W2", n, n, window=(3,), var=1.5), tp.nonlin(jax.scipy.special.erf, h))
    h = tp.nonlin(jax.scipy.special.erf, h)
    return tp.conv(tp.weight("v", 1, n, window=x.sites), h, padding="VALID")[0]


def test_the_backward_road_takes_convolutions() -> None:
    program, x = tp.trace(cnn, tp.Input(4, 2)), RNG.normal(size=(2, 4, 2))
    found = tp.kernels(program, jnp.asarray(x), method="backward", error=True, samples=2**15)
    nngp, ntk = cnn_kernels(x)
    assert (np.abs(found.nngp - nngp) <= 4 * found.error.nngp).all()
    assert (np.abs(found.ntk - ntk) <= 4 * found.error.ntk).all()
    assert np.max(found.error.ntk) < 0.02 * np.max(ntk)


@pytest.mark.slow
def test_linear_convolutions_have_exact_limits() -> None:
    """W and its transpose at every offset, through the backward pass of an average: equal to a product of Gaussians."""

    def net(x: Any) -> Any:
        n = tp.Width("n")
        h = tp.conv(tp.weight("W", n, n, window=(3,)), tp.conv(tp.weight("U", n, x.features, window=(3,)), x))
        return tp.scalar(jnp.sum, tp.moment(operator.mul, tp.bias("v", n, sites=h.sites), h))

    program = tp.trace(net, tp.Input(3, 2))
    x = 0.7 * RNG.normal(size=(1, 2, 3, 2))  # a step that is stable: what diverges is far from its limit at any width
    steps = tp.sgd_step(program, lambda f: 0.5 * ((f - 1.0) ** 2).sum(), 0.5, steps=2, batch=2)
    found = tp.limit(steps, x)
    assert found.method == "exact"
    one = lambda key: tp.apply(steps, tp.init(steps, key, 256), x)[0][0]
    finite = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 48))
    error = np.asarray(finite).std(0, ddof=1) / np.sqrt(len(finite))
    assert (np.abs(finite.mean(0) - found.value[0][0]) <= 4 * error + 0.01).all()
    assert abs(float(found.value[0][0][2][0])) > 0.05
