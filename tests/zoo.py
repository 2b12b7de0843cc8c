"""The architectures for tests: random data for each, and how its kernels are got."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

import tensorprog as tp
from tensorprog.nets import ZOO

SAMPLED = ("gru", "lstm", "cnn_maxpool")
"""Functions of more than two dependent Gaussians: kernels are estimated from samples."""
REFUSED = ("autoencoder_tied",)
"""W and Wᵀ forward: only `method="backward"` has the kernels."""
EXACT = tuple(name for name in ZOO if name not in (*SAMPLED, *REFUSED))
QUICK = ("mlp", "mlp_tied", "mlp_two_widths", "resnet_mlp", "layernorm_mlp", "cnn_gap", "gcn", "siamese")
"""Nets of closed forms only, with sites, data, scalars, two inputs: what every property is tested on by default."""


def data(program: tp.Program, count: int, seed: int = 0) -> Any:
    """Standard normal inputs (count, *shape), a tuple for several; data are positive, as masks and adjacencies are."""
    rng = np.random.default_rng(seed)
    arrays = []
    for declared in program.structure.inputs:
        values = rng.normal(size=(count, *declared.shape))
        arrays.append(jnp.asarray(np.abs(values) if isinstance(declared, tp.Data) else values))
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def rows(x: Any, index: Any) -> Any:
    """Some of the examples of one or several inputs."""
    return tuple(a[index] for a in x) if isinstance(x, tuple) else x[index]


def first(found: Any) -> Any:
    """The first output's kernels."""
    return found if hasattr(found, "nngp") or hasattr(found, "shape") or isinstance(found, dict) else found[0]


def matrix(kernel: Any) -> np.ndarray:
    """A kernel (N1, N2, *S, *S) as one matrix, inputs and sites together."""
    kernel = np.asarray(kernel)
    sites = int(np.prod(kernel.shape[2 : 2 + (kernel.ndim - 2) // 2]))
    return kernel.reshape(*kernel.shape[:2], sites, sites).swapaxes(1, 2).reshape(kernel.shape[0] * sites, -1)
