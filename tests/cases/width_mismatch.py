"""Two widths are added."""

import tensorprog as tp


def net(x):
    n, m = tp.Width("n"), tp.Width("m")
    h = tp.weight("W", n, x.features) @ x
    k = tp.weight("V", m, x.features) @ x
    return tp.weight("v", 1, n) @ (h + k)  # here
