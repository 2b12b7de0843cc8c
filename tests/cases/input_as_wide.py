"""An input meets a nonlinearity before any weight."""

import jax.numpy as jnp

import tensorprog as tp


def net(x):
    n = tp.Width("n")
    h = tp.nonlin(jnp.tanh, x)  # here
    return tp.weight("v", 1, n) @ h
