"""A readout is used inside the network."""

import jax.numpy as jnp

import tensorprog as tp


def net(x):
    n = tp.Width("n")
    h = tp.weight("W", n, x.features) @ x
    f = tp.weight("v", 1, n) @ h
    return tp.nonlin(jnp.tanh, f)  # here
