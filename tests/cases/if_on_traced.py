"""A Python `if` on a value that is not known yet."""

import jax.numpy as jnp

import tensorprog as tp


def net(x):
    n = tp.Width("n")
    h = tp.nonlin(jnp.tanh, tp.weight("W", n, x.features) @ x)
    if h:  # here
        h = h + h
    return tp.weight("v", 1, n) @ h
