"""Kernels of independent libraries and of the papers' code, at the tolerances that those have themselves."""

from __future__ import annotations

import re
from typing import Any

import jax.numpy as jnp
import layers
import numpy as np
import pytest
import reference

import tensorprog as tp
from tensorprog.nets import net

NAMES = reference.names()
COVERED = [n for n in NAMES if not layers.operations(reference.case(n).spec) & layers.NOT_COVERED.keys()]
ALWAYS = {
    "fcn_relu_d1_b",
    "fcn_abs_d1_b",
    "fcn_erf_d1_nob",
    "fcn_gelu_d1_b",
    "fcn_sign_d1_b",
    "fcn_sin_d1_b",
    "fcn_res_erf",
    "fcn_sum3_relu",
    "fcn_concat_eq_erf",
    "fcn_res_ln_erf",
    "cnn1d_CIRCULAR_s1_gap_erf",
    "cnn2d_rect_flat",
    "cnn2d_sumgp_gap",
    "cnn2d_transpose_SAME_flat",
    "cnn1d_transpose_SAME_gap",
    "cnn2d_local_mix_gap",
    "att_lin_softmax_pe_concat_gap",
    "graph_relu_flat",
    "full_conv2d",
}


#: Cases that are many of a kind: `full` tests, but for those that PICKED picks out of them.
GRIDS = re.compile(r"fcn_|edge_|att_lin_|cnn[12]d_(SAME|VALID|CIRCULAR)_s\d_(flat|gap)_(relu|erf)")
PICKED = re.compile(r"fcn_(relu|gelu|sign)_d20_b|edge_(gelu|sin)_d3|att_lin_softmax_pe_sum|cnn2d_\w+_s2_\w+_relu")


def mark(name: str) -> Any:
    if name in ALWAYS:
        return name
    return pytest.param(
        name, marks=pytest.mark.full if GRIDS.match(name) and not PICKED.match(name) else pytest.mark.slow
    )


CASES = [mark(n) for n in COVERED]
KINKED = {"Relu", "LeakyRelu", "ABRelu", "Abs", "Sign", "RectifiedMonomial"}


def tolerance(case: reference.Case, array: str) -> float:
    """1e-10; 1e-6 where the reference's angles of (anti)parallel pairs carry its own rounding; or its quadrature's.

    Rbf, deep, multiplies the reference's rounding of inputs with themselves: there E 2 sin² is 1, and it has 1 + 2e-10.
    """
    ops = layers.operations(case.spec)
    if "Numerical" in ops:
        return max(case.quadrature[array], 1e-10)
    return 1e-6 if ops & KINKED else 1e-9 if "Rbf" in ops else 1e-10


def test_what_is_not_covered() -> None:
    """The operations that no test below has are the listed ones, each of them in some case."""
    every = frozenset().union(*(layers.operations(reference.case(name).spec) for name in NAMES))
    covered = frozenset().union(*(layers.operations(reference.case(name).spec) for name in COVERED))
    assert every - covered == layers.NOT_COVERED.keys()
    assert set(NAMES) >= ALWAYS


def batch(case: reference.Case, index: int) -> Any:
    """x1 or x2 as a program takes it, with each graph's matrix beside it."""
    x = jnp.asarray((case.x1, case.x2)[index])
    return x if case.graphs is None else (x, jnp.asarray(case.graphs[index]))


def as_stored(kernel: Any, case: reference.Case) -> np.ndarray:
    """(N1, N2, *S, *S) as the reference has it: the two sides of each site axis beside each other."""
    rank = (np.ndim(kernel) - 2) // 2
    assert rank == 0 or case.full, "everything is read out"
    return np.transpose(kernel, (0, 1, *(2 + side * rank + axis for axis in range(rank) for side in (0, 1))))


@pytest.mark.parametrize("name", CASES)
def test_layers(name: str) -> None:
    case = reference.case(name)
    inputs = [tp.Input(*case.x1.shape[1:])]
    inputs += [] if case.graphs is None else [tp.Data(*case.graphs[0].shape[1:])]
    program = tp.trace(layers.network, *inputs, spec=case.spec)
    for suffix, x2 in (("12", batch(case, 1)), ("11", None)):
        if f"nngp_{suffix}" not in case.arrays:
            continue
        found = tp.kernels(program, batch(case, 0), x2)
        for what, ours in (("nngp", found.nngp), ("ntk", found.ntk)):
            if f"{what}_{suffix}" not in case.arrays:
                continue  # the NTK of functions that jump
            theirs = case.arrays[f"{what}_{suffix}"]
            error = np.abs(as_stored(ours, case) - theirs).max() / np.abs(theirs).max()
            assert error <= tolerance(case, f"{what}_{suffix}"), f"{what}_{suffix} is off by {error:.2e}"


@pytest.mark.parametrize("name", [
    n if "depth1" in n else pytest.param(n, marks=pytest.mark.slow)
    for n in reference.papers() if n.startswith("transformer_ntk")
])  # fmt: skip
def test_transformers_of_the_papers(name: str) -> None:
    """Both kernels, and the last layer's tokens: layer norm of the last sum, whose moments are its correlations."""
    entry, arrays = reference.paper(name)
    hyper, x = entry["hyper"], jnp.asarray(arrays["inputs"])
    variances = {"var_w": hyper["vw"], "var_u": hyper["vu"], "var_v": hyper["vv"]}
    depth, temperature = hyper["depth"], hyper["temp"]
    program = net("transformer").program(tp.Input(*x.shape[1:]), depth=depth, temperature=temperature, **variances)
    np.testing.assert_allclose(tp.ntk(program, x, convention="init-std"), arrays["exact_ntk"], rtol=1e-8)
    np.testing.assert_allclose(tp.nngp(program, x), arrays["exact_nngp"], rtol=1e-8)
    last = f"g{6 * depth}"  # a layer has the sums k, k + A k, two of each layer norm, and two products
    C = np.asarray(tp.second_moment(program, last, last, x))
    scale = np.sqrt(np.einsum("aaii->ai", C))
    tokens = np.einsum("abij,ai,bj->aibj", C, 1 / scale, 1 / scale)
    np.testing.assert_allclose(tokens, arrays["exact_CxL"], rtol=1e-8)


def test_layer_norm_over_sites() -> None:
    """No case has it: by its formula, both kernels over the square roots of the mean variances over sites."""
    case = reference.case("full_conv1d")
    x1, x2 = batch(case, 0), batch(case, 1)
    norm = {"op": "LayerNorm", "axis": [1, -1]}
    first, plain, normed = (
        tp.trace(layers.network, tp.Input(*case.x1.shape[1:]), spec=spec)
        for spec in ([case.spec[0]], [case.spec[0], case.spec[2]], [case.spec[0], norm, case.spec[2]])
    )
    variances = [np.einsum("aapp->ap", tp.nngp(first, x)) for x in (x1, x2)]
    scale = np.sqrt(np.outer(*(v.mean(1) for v in variances)))[:, :, None, None]
    before, after = tp.kernels(plain, x1, x2), tp.kernels(normed, x1, x2)
    bias = case.spec[2]["b_std"] ** 2
    np.testing.assert_allclose(after.nngp - bias, (before.nngp - bias) / scale, rtol=1e-10)
    np.testing.assert_allclose(after.ntk - bias, (before.ntk - bias) / scale, rtol=1e-10)
