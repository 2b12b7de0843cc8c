"""Kernels of independent libraries and of the papers' code, at the tolerances that those have themselves."""

from __future__ import annotations

import jax.numpy as jnp
import layers
import numpy as np
import pytest
import reference

import tensorprog as tp

NAMES = [n for n in reference.names() if not reference.case(n).ops & layers.NOT_YET]
ALWAYS = {
    "relu_d1_b",
    "abs_d1_b",
    "erf_d1_nob",
    "gelu_d1_b",
    "sign_d1_b",
    "sin_d1_b",
    "num_tanh_d1_b",
    "res_erf",
    "sum3_relu",
}
CASES = [n if n.removeprefix("fcn_") in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
KINKED = {"Relu", "LeakyRelu", "ABRelu", "Abs", "Sign", "RectifiedMonomial"}


def tolerance(case: reference.Case, array: str) -> float:
    """1e-9; 1e-6 where the reference's angles of (anti)parallel pairs carry its own rounding; or its quadrature's."""
    if "Numerical" in case.ops:
        return max(2 * case.quadrature.get(array, 0.0), 1e-5)
    return 1e-6 if case.ops & KINKED else 1e-9


@pytest.mark.parametrize("name", CASES)
def test_layers(name: str) -> None:
    case = reference.case(name)
    program = tp.trace(layers.network, tp.Input(*case.x1.shape[1:]), spec=case.spec)
    for suffix, x2 in (("12", jnp.asarray(case.x2)), ("11", None)):
        if f"nngp_{suffix}" not in case.arrays:
            continue
        found = tp.kernels(program, jnp.asarray(case.x1), x2)
        for what, ours in (("nngp", found.nngp), ("ntk", found.ntk)):
            if f"{what}_{suffix}" not in case.arrays:
                continue  # the NTK of functions that jump
            theirs = case.arrays[f"{what}_{suffix}"]
            error = np.abs(ours - theirs).max() / np.abs(theirs).max()
            assert error <= tolerance(case, f"{what}_{suffix}"), f"{what}_{suffix} is off by {error:.2e}"
