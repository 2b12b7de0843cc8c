"""The weight stands on the right of the vector."""

import jax.numpy as jnp

import tensorprog as tp


def net(x):
    n = tp.Width("n")
    W = tp.weight("W", n, n)
    h = tp.nonlin(jnp.tanh, tp.weight("U", n, x.features) @ x)
    return tp.weight("v", 1, n) @ (h @ W)  # here
