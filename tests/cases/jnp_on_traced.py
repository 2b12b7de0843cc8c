"""jnp applied to a traced vector."""

import jax.numpy as jnp

import tensorprog as tp


def net(x):
    n = tp.Width("n")
    h = tp.weight("W", n, x.features) @ x
    s = jnp.tanh(h)  # here
    return tp.weight("v", 1, n) @ s
