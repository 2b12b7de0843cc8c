"""Networks over sets, graphs and pairs: deep sets, graph convolutions, a shared trunk."""

from __future__ import annotations

import jax

from tensorprog.nets.layers import Fn, check_depth, check_rank, dense
from tensorprog.tracing.builder import Number, Width
from tensorprog.tracing.declare import bias, weight
from tensorprog.tracing.sites import mean, mix
from tensorprog.tracing.values import Scalar, Vector, nonlin


def gcn(
    x: Vector,
    adjacency: Scalar,
    *,
    depth: int = 3,
    fn: Fn = jax.nn.relu,
    var_w: Number = 2.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """A graph network: hˡ⁺¹ = Wˡ⁺¹ (A xˡ) + bˡ⁺¹, xˡ = φ(hˡ), f = v·(mean over nodes of x^depth)/√n.

    A is each graph's own (nodes × nodes), as it is given: normalise it, and add self loops, beforehand. Recursion:
    H = σ_w² A C Āᵀ + σ_b² (Kipf and Welling 2017, 1609.02907; docs/theory.md).
    """
    check_depth(x, depth)
    check_rank(x, (1,), "a graph network", "give tp.Input(nodes, features), tp.Data(nodes, nodes)")
    nodes = x.sites[0]
    if adjacency.sites != (nodes, nodes):
        x.builder.fail(
            "gcn(x, adjacency)", f"the adjacency has shape {adjacency.sites}, the input {nodes} nodes",
            f"give tp.Data({nodes}, {nodes})",
        )  # fmt: skip
    n = Width("n")
    hidden = x
    for layer in range(1, depth + 1):
        hidden = nonlin(fn, dense(str(layer), n, mix(adjacency, hidden), var_w, var_b))
    return weight("v", 1, n, var=var_v) @ mean(hidden)


def deep_sets(
    x: Vector,
    *,
    depth: int = 2,
    fn: Fn = jax.nn.relu,
    var_w: Number = 2.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> Vector:
    """f = ρ(mean over the set of φ(x_i)): `depth` layers for each element, the mean, `depth` layers after it.

    After the mean the kernel is that of an MLP whose first moments are means over all pairs of elements (Zaheer et al.
    2017, 1703.06114).
    """
    check_depth(x, depth)
    check_rank(x, (1,), "a net over sets", "give tp.Input(elements, features)")
    n = Width("n")
    hidden = x
    for layer in range(1, depth + 1):
        hidden = nonlin(fn, dense(f"{layer}a", n, hidden, var_w, var_b))
    hidden = mean(hidden)
    for layer in range(1, depth + 1):
        hidden = nonlin(fn, dense(f"{layer}b", n, hidden, var_w, var_b))
    return weight("v", 1, n, var=var_v) @ hidden


def siamese(
    x: Vector,
    y: Vector,
    *,
    depth: int = 3,
    fn: Fn = jax.nn.relu,
    var_w: Number = 2.0,
    var_b: Number = 0.1,
    var_v: Number = 1.0,
) -> tuple[Vector, Vector]:
    """One trunk for two inputs, and two heads: f₁ = v₁·(h(x) + h(y))/√(2n), f₂ = v₂·(h(x) − h(y))/√(2n).

    The trunk's weights are shared, so moments between h(x) and h(y) enter both kernels (Bromley et al. 1993).
    """
    check_depth(x, depth)
    n = Width("n")
    if x.features != y.features:
        x.builder.fail("siamese(x, y)", f"the inputs have {x.features} and {y.features} features", "give both the same")
    weights = [weight(f"W{k}", n, x.features if k == 1 else n, var=var_w) for k in range(1, depth + 1)]
    biases = [bias(f"b{k}", n, var=var_b) for k in range(1, depth + 1)]

    def trunk(hidden: Vector) -> Vector:
        for w, b in zip(weights, biases, strict=True):
            hidden = nonlin(fn, w @ hidden + b)
        return hidden

    left, right = trunk(x), trunk(y)
    first, second = (weight(f"v{k}", 1, n, var=var_v / 2) for k in (1, 2))
    return first @ (left + right), second @ (left - right)
