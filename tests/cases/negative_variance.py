"""A variance below zero."""

import tensorprog as tp


def net(x):
    n = tp.Width("n")
    W = tp.weight("W", n, x.features, var=-1.0)  # here
    return tp.weight("v", 1, n) @ (W @ x)
