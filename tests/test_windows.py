"""Windows over sites: convolutions, patches, pooling and padding against JAX's own, and what is refused."""

# pyright: reportArgumentType=false
# (what the types forbid is what is tested here)

from __future__ import annotations

import itertools
import math
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


def network(body: Body) -> Callable[..., Any]:
    """A program around `body`, which gets the input x and a hidden vector h over the same sites."""

    def fn(x):
        n = tp.Width("n")
        return body(SimpleNamespace(x=x, n=n, h=tp.weight("U", n, x.features) @ x))

    return fn


def run(body: Body, sites: tuple[int, ...]) -> tuple[Any, np.ndarray, np.ndarray, dict[str, Any]]:
    """What a body's finite network computes for one example, that example, its h, and the parameters."""
    x = jax.random.normal(jax.random.key(7), (1, *sites, 3))
    program, hidden = (tp.trace(network(b), tp.Input(*sites, 3)) for b in (body, lambda e: e.h))
    params = tp.init(program, jax.random.key(0), width=N)
    both = jax.jit(lambda q: (tp.apply(program, q, x), tp.apply(hidden, q, x)))(params)
    y, h = jax.tree.map(lambda a: np.asarray(a[0]), both)
    return y, np.asarray(x[0]), h, params


def letters(rank: int) -> tuple[str, str, str]:
    """Dimension numbers of images (N, *S, C) and filters (*S, I, O)."""
    axes = "HWD"[:rank]
    return f"N{axes}C", f"{axes}IO", f"N{axes}C"


def filters(params: dict[str, Any], name: str, var: float = 1.0) -> np.ndarray:
    """A weight's matrices as JAX's filters (*window, cols, rows), scaled as the network has them."""
    theta = np.asarray(params[name])
    return np.swapaxes(theta, -1, -2) * math.sqrt(var / (theta.shape[-1] * math.prod(theta.shape[:-2])))


def ringed(x: np.ndarray, window: Any, strides: Any, dilation: Any) -> np.ndarray:
    """An image (*S, C) with its own other end around it, as much as SAME pads with zeros."""
    pads = []
    for size, w, step, hole in zip(x.shape, window, strides, dilation, strict=False):
        total = max((-(-size // step) - 1) * step + (w - 1) * hole + 1 - size, 0)
        pads.append((total // 2, total - total // 2))
    return np.pad(x, [*pads, (0, 0)], mode="wrap")


STEPS = [(1, 1), (2, 1), (1, 2), (3, 2)]
"""Strides and dilation."""


@pytest.mark.parametrize(
    ("sites", "window"), [((7,), (3,)), ((7,), (4,)), ((6, 5), (3, 2)), ((5, 6), (1, 3)), ((3, 4, 3), (2, 3, 1))]
)
def test_conv_is_jax_s(sites: Any, window: Any) -> None:
    rank = len(sites)
    cases = [
        (strides, dilation, padding)
        for (strides, dilation), padding in itertools.product(STEPS, ["SAME", "VALID", "CIRCULAR"])
        if padding != "VALID" or all((w - 1) * dilation < s for s, w in zip(sites, window, strict=True))
    ]

    def body(e: Any) -> Any:
        W = tp.weight("W", e.n, e.n, window=window, var=1.7)
        return tuple(tp.conv(W, e.h, *case[:1], padding=case[2], dilation=case[1]) for case in cases)

    found, _, h, params = run(body, sites)
    for (strides, dilation, padding), y in zip(cases, found, strict=True):
        steps, holes = (strides,) * rank, (dilation,) * rank
        around = ringed(h, window, steps, holes) if padding == "CIRCULAR" else h
        expected = jax.lax.conv_general_dilated(
            around[None], filters(params, "W", 1.7), steps, "VALID" if padding == "CIRCULAR" else padding,
            rhs_dilation=holes, dimension_numbers=letters(rank),
        )[0]  # fmt: skip
        assert y.shape == expected.shape, (strides, dilation, padding)
        np.testing.assert_allclose(y, expected, atol=1e-12, err_msg=f"{strides, dilation, padding}")


def test_conv_by_axis() -> None:
    """Strides and dilations of their own for each axis."""
    body = lambda e: tp.conv(tp.weight("W", e.n, e.n, window=(3, 2)), e.h, strides=(2, 1), dilation=[1, 3])
    y, _, h, params = run(body, (7, 6))
    expected = jax.lax.conv_general_dilated(
        h[None], filters(params, "W"), (2, 1), "SAME", rhs_dilation=(1, 3), dimension_numbers=letters(2)
    )[0]
    np.testing.assert_allclose(y, expected, atol=1e-12)


def test_conv_of_an_input_and_axes_before_the_window() -> None:
    y, x, _, params = run(lambda e: tp.conv(tp.weight("W", e.n, 3, window=(3,)), e.x), (2, 5))
    for k in (0, 1):
        one = jax.lax.conv_general_dilated(x[k][None], filters(params, "W"), (1,), "SAME", dimension_numbers=letters(1))
        np.testing.assert_allclose(y[k], one[0], atol=1e-12)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_flatten_readout_is_a_conv_of_all_sites(rows: int) -> None:
    def body(e: Any) -> Any:
        v = tp.weight("v", rows, e.n, window=e.h.sites, var=2.0)
        return tp.conv(v, tp.nonlin(jnp.tanh, e.h), padding="VALID")[0, 0]

    y, _, h, params = run(body, (3, 2))
    flat = np.tanh(h).reshape(-1)
    v = np.moveaxis(np.asarray(params["v"]), 2, 0).reshape(rows, -1) * math.sqrt(2.0 / flat.size)
    np.testing.assert_allclose(y, (v @ flat)[0] if rows == 1 else v @ flat, rtol=1e-12)


@pytest.mark.parametrize(
    ("sites", "window"), [((5,), (3,)), ((4,), (4,)), ((3,), (1,)), ((3, 4), (3, 2)), ((2, 3), (5, 2))]
)
def test_conv_transpose_is_jax_s(sites: Any, window: Any) -> None:
    rank = len(sites)
    cases = list(itertools.product([1, 2, 3, 4], ["SAME", "VALID"]))

    def body(e: Any) -> Any:
        W = tp.weight("W", e.n, e.n, window=window)
        return tuple(tp.conv_transpose(W, e.h, *case) for case in cases)

    found, _, h, params = run(body, sites)
    for (strides, padding), y in zip(cases, found, strict=True):
        expected = jax.lax.conv_transpose(
            h[None], filters(params, "W"), (strides,) * rank, padding, dimension_numbers=letters(rank)
        )[0]
        assert y.shape == expected.shape, (strides, padding)
        np.testing.assert_allclose(y, expected, atol=1e-12, err_msg=f"{strides, padding}")


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("sites", "window", "strides"), [((6,), (3,), 2), ((4, 5), (3, 2), 1), ((4, 5), (2, 2), 2)])
def test_conv_local_is_jax_s(sites: Any, window: Any, strides: int, padding: str) -> None:
    rank = len(sites)
    reach = [w if padding == "VALID" else 1 for w in window]
    out = tuple(-(-(s - r + 1) // strides) for s, r in zip(sites, reach, strict=True))

    def body(e: Any) -> Any:
        W = tp.weight("W", e.n, e.n, window=window, sites=out, var=0.7)
        return tp.conv_local(W, e.h, strides=strides, padding=padding) + tp.bias("b", e.n, sites=out)

    y, _, h, params = run(body, sites)
    theta = np.asarray(params["W"]) * math.sqrt(0.7 / (N * math.prod(window)))  # (*out, *window, rows, cols)
    by_feature = np.moveaxis(theta, -1, rank).reshape(*out, N * math.prod(window), N)  # features before offsets
    expected = jax.lax.conv_general_dilated_local(
        h[None], by_feature, (strides,) * rank, padding, window, dimension_numbers=letters(rank)
    )[0]
    np.testing.assert_allclose(y, expected + np.asarray(params["b"]), atol=1e-12)


def test_a_matrix_at_each_site() -> None:
    y, _, h, params = run(lambda e: tp.weight("W", e.n, e.n, sites=(4,)) @ e.h, (2, 4))
    np.testing.assert_allclose(y, np.einsum("srec,bsc->bsr", params["W"][:, :, None], h) / math.sqrt(N), rtol=1e-12)


BROADCAST: list[tuple[tuple[int, ...], tuple[int, ...], str]] = [
    ((4,), (), "src,c->sr"),
    ((4,), (2, 1), "src,blc->bsr"),
    ((2, 1), (2, 4), "slrc,stc->str"),
    ((2, 1), (3, 2, 4), "slrc,bstc->bstr"),
    ((1, 4), (2, 1), "lsrc,tlc->tsr"),
    ((1, 2, 1), (3, 2, 4), "lsmrc,bstc->bstr"),
    ((1,), (2, 4), "lrc,bsc->bsr"),
]


@pytest.mark.parametrize(("own", "sites", "spec"), BROADCAST)
def test_sites_of_weights_broadcast_as_in_numpy(own: tuple[int, ...], sites: tuple[int, ...], spec: str) -> None:
    y, _, h, params = run(lambda e: tp.weight("W", e.n, e.n, sites=own) @ e.h, sites)
    assert params["W"].shape == (*own, N, N)
    np.testing.assert_allclose(y, np.einsum(spec, params["W"], h) / math.sqrt(N), rtol=1e-12)
    assert y.shape == (*np.broadcast_shapes(own, sites), N)


POOLS = [
    ((6,), (2,), (2,), "VALID"),
    ((6,), (3,), (1,), "VALID"),
    ((7,), (3,), (2,), "SAME"),
    ((5, 6), (2, 3), (1, 3), "VALID"),
    ((5, 6), (3, 2), (2, 3), "SAME"),
    ((3, 5), (2, 2), (2, 2), "SAME"),
]


@pytest.mark.parametrize(("sites", "window", "strides", "padding"), POOLS)
def test_pool_is_reduce_window(sites: Any, window: Any, strides: Any, padding: str) -> None:
    def body(e: Any) -> Any:
        options = {"window": window, "strides": strides, "padding": padding}
        return tuple(
            tp.pool(e.h, **options, **more)
            for more in ({"kind": "sum"}, {}, {"count_edges": False}, {"kind": "sum", "count_edges": False})
        )

    outputs, _, h, _ = run(body, sites)
    reduced = lambda a: jax.lax.reduce_window(a, 0.0, jax.lax.add, (*window, 1), (*strides, 1), padding)
    total, real = reduced(h), reduced(jnp.ones_like(h))
    expected = total, total / math.prod(window), total / real, total
    for found, value in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(found, value, atol=1e-12)


def test_pool_around_a_ring_and_its_default_strides() -> None:
    y, _, h, _ = run(lambda e: tp.pool(e.h, 3, padding="CIRCULAR"), (5,))
    np.testing.assert_allclose(y, (np.roll(h, 1, 0) + h + np.roll(h, -1, 0)) / 3, atol=1e-12)


def test_pool_of_the_last_axes_and_of_an_input() -> None:
    y, _, h, _ = run(lambda e: tp.pool(e.h, 2, 2), (3, 4))
    np.testing.assert_allclose(y, h.reshape(3, 2, 2, N).mean(2), atol=1e-12)
    y, x, _, params = run(lambda e: tp.weight("V", e.n, 3) @ tp.pool(e.x, 2, 2, kind="sum"), (4,))
    np.testing.assert_allclose(y, x.reshape(2, 2, 3).sum(1) @ np.asarray(params["V"]).T / math.sqrt(3), atol=1e-12)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
def test_patches_are_the_windows(padding: str) -> None:
    y, _, h, _ = run(lambda e: tp.patches(e.h, (3, 2), padding=padding), (4, 5))
    padded = {
        "VALID": h,
        "SAME": np.pad(h, [(1, 1), (0, 1), (0, 0)]),
        "CIRCULAR": np.pad(h, [(1, 1), (0, 1), (0, 0)], mode="wrap"),
    }[padding]
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 2), (0, 1))  # (*windows, n, *window)
    np.testing.assert_array_equal(y, np.moveaxis(windows, 2, -1))


def test_patches_in_steps() -> None:
    y, _, h, _ = run(lambda e: tp.patches(e.h, (2, 2), strides=2), (4, 6))
    np.testing.assert_array_equal(y, h.reshape(2, 2, 3, 2, N).transpose(0, 2, 1, 3, 4))


@pytest.mark.parametrize(
    "widths", [1, (1, 2), ((1, 0), (0, 2)), [(2,), (1,)], np.array([[0, 1], [0, 0]]), ((3, 1),), 0]
)
def test_pad_is_numpy_s(widths: Any) -> None:
    y, x, h, params = run(lambda e: tp.pad(e.h, widths), (2, 3))
    own = np.broadcast_to(np.asarray(widths), (2, 2))
    np.testing.assert_array_equal(y, np.pad(h, [*map(tuple, own), (0, 0)]))
    y, x, _, params = run(lambda e: tp.weight("V", e.n, 3) @ tp.pad(e.x, widths), (2, 3))
    padded = np.pad(x, [*map(tuple, own), (0, 0)])
    np.testing.assert_allclose(y, padded @ np.asarray(params["V"]).T / math.sqrt(3), atol=1e-12)


def test_slices_of_what_is_padded() -> None:
    """Indices, stacks and concats of padded vectors keep the zeros where they are."""
    y, _, h, _ = run(lambda e: tp.concat([tp.pad(e.h, 1)[::2], tp.stack([tp.pad(e.h, (0, 3))[-1]])])[::-1], (4,))
    padded = np.pad(h, [(1, 1), (0, 0)])
    np.testing.assert_array_equal(y, np.concatenate([padded[::2], np.zeros((1, N))])[::-1])


# ---- what is refused, at the user's line


def W(e: Any, *window: int, **options: Any) -> Any:
    return tp.weight("W", e.n, e.n, window=window, **options)


REFUSED: list[tuple[Body, tuple[str, ...]]] = [
    (lambda e: tp.conv(W(e, 5, 2), e.h, padding="VALID"), ("conv(W, x)", "(5, 2)", "(4, 6)", "smaller window")),
    (lambda e: tp.conv(W(e, 3, 3), e.h, padding="VALID", dilation=2), ("dilation (2, 2)", "(5, 5) sites", "(4, 6)")),
    (lambda e: tp.pool(e.h, (5, 1)), ("pool(x, (5, 1))", "does not fit")),
    (lambda e: tp.patches(e.h, 7), ("patches(x, 7)", "does not fit into sites (6,)")),
    (lambda e: tp.conv(W(e, 3, 3, 3), e.h), ("it has 3 axes, x 2", "last site axes")),
    (lambda e: tp.pool(e.h, (1, 1, 1)), ("it has 3 axes, x 2",)),
    (lambda e: tp.pool(e.h, ()), ("at least one",)),
    (lambda e: tp.pool(e.h[0, 0], 2), ("it has 1 axes, x 0",)),
    (lambda e: tp.pool(e.h, 0), ("window=0 is not made of positive ints",)),
    (lambda e: tp.pool(e.h, 2.0), ("window=2.0",)),
    (lambda e: tp.conv(W(e, 3, 3), e.h, strides=0), ("strides=0 is not made of positive ints", "one for each axis")),
    (lambda e: tp.conv(W(e, 3, 3), e.h, strides=(2, -1)), ("strides=(2, -1)",)),
    (lambda e: tp.conv(W(e, 3, 3), e.h, strides=1.5), ("strides=1.5",)),
    (lambda e: tp.conv(W(e, 3, 3), e.h, strides=True), ("strides=True",)),
    (lambda e: tp.conv(W(e, 3, 3), e.h, strides=(1, 2, 3)), ("strides=(1, 2, 3) has 3 entries, the window 2 axes",)),
    (lambda e: tp.conv(W(e, 3, 3), e.h, dilation=(1,)), ("dilation=(1,) has 1 entries, the window 2 axes",)),
    (lambda e: tp.conv(W(e, 3, 3), e.h, dilation="2"), ("dilation='2'",)),
    (lambda e: tp.conv_transpose(W(e, 3, 3), e.h, strides=(2,)), ("conv_transpose", "strides=(2,) has 1 entries")),
    (lambda e: tp.conv(W(e, 3, 3), e.h, padding="same"), ("padding='same'", "'SAME', 'VALID', 'CIRCULAR'")),
    (lambda e: tp.conv(W(e, 3, 3), e.h, padding=1), ("padding=1", "'SAME'")),
    (lambda e: tp.conv_transpose(W(e, 3, 3), e.h, padding="CIRCULAR"), ("'CIRCULAR'", "one of 'SAME', 'VALID'")),
    (lambda e: tp.pool(e.h, 2, kind="max"), ("kind='max'", "'mean', 'sum'")),
    (lambda e: tp.conv(W(e), e.h), ("W has no window", "write W @ x")),
    (lambda e: tp.conv_local(W(e), e.h), ("W has no window",)),
    (lambda e: tp.conv(W(e, 3, sites=(6,)), e.h), ("matrix for each of its sites", "tp.conv_local(W, x)")),
    (lambda e: tp.conv_transpose(W(e, 3, sites=(6,)), e.h), ("matrix for each of its sites", "without sites")),
    (lambda e: tp.conv_local(W(e, 3, 3), e.h), ("W has no sites, the result has (2, 4)", "sites=(2, 4)", "tp.conv(")),
    (lambda e: tp.conv_local(W(e, 3, 3, sites=(4, 6)), e.h), ("W has sites (4, 6), the result has (2, 4)",)),
    (lambda e: tp.conv(e.h, W(e, 3, 3)), ("a wide vector", "no weight of the program")),
    (lambda e: tp.conv(W(e, 3, 3), np.ones((4, 6, 3))), ("conv(W, x)", "is no vector of the program")),
    (lambda e: tp.conv(W(e, 3, 3), e.x), ("an input is used as a wide vector", "x.features")),
    (lambda e: tp.conv(tp.weight("W", e.n, 5, window=(3, 3)), e.x), ("features do not match",)),
    (lambda e: W(e, 3, 3) @ e.h, ("tp.conv(W, x)",)),
    (
        lambda e: W(e, sites=(5,)) @ e.h,
        ("matrix at each of its sites (5,), the vector has sites (4, 6): they do not broadcast", "x[…, None]"),
    ),
    (lambda e: tp.pad(e.h, -1), ("pad(x, -1)", "ints from 0 on", "x[1:-1]")),
    (lambda e: tp.pad(e.h, 1.0), ("ints from 0 on",)),
    (lambda e: tp.pad(e.h, True), ("ints from 0 on",)),
    (lambda e: tp.pad(e.h, [(1, 1)] * 3), ("widths of shape (3, 2) for 2 site axes (4, 6)",)),
    (lambda e: tp.pad(e.h, (1, 2, 3)), ("widths of shape (3,)",)),
    (lambda e: tp.pad(e.h[0, 0], 1), ("0 site axes",)),
    (lambda e: tp.pad(np.ones(3), 1), ("is no vector of the program",)),
    (lambda e: tp.pool(e.h, 3, 2), ("in steps of 2 leave the last 1 of 6 sites out", "x[…, : 5]", '"SAME"')),
    (lambda e: tp.patches(e.h, (3, 2), 2), ("leave the last 1 of 4 sites out",)),
    (lambda e: tp.pool(e.h, 3, 4, padding="CIRCULAR"), ("steps of 4 do not go around 6 sites evenly",)),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(REFUSED)))
def test_refused(index: int) -> None:
    body, texts = REFUSED[index]
    with pytest.raises(tp.ProgramError) as caught:
        tp.trace(network(body), tp.Input(4, 6, 3))
    message = str(caught.value)
    assert message.startswith(f"{__file__}:{body.__code__.co_firstlineno}:"), message
    for text in texts:
        assert text in message, message


def test_strides_that_do_not_divide_are_xla_s_in_convs() -> None:
    """Convolutions drop and wrap sites as XLA's do; only windows that are there to cover the sites must."""

    def body(e: Any) -> Any:
        kernel = W(e, 3, 3)
        return tp.conv(kernel, e.h, 2, "VALID"), tp.conv(kernel, e.h, 4, "CIRCULAR")

    structure = tp.trace(network(body), tp.Input(4, 6, 3)).structure
    assert [structure.types[o].sites for o in structure.outputs] == [(1, 2), (1, 2)]
