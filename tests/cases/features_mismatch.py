"""The weight is declared for another number of features."""

import tensorprog as tp


def net(x):
    n = tp.Width("n")
    W = tp.weight("W", n, 7)
    h = W @ x  # here
    return tp.weight("v", 1, n) @ h
