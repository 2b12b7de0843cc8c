"""Structured derivatives against whole Jacobians: every construction, every mode, and what is said of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import empirical
from tensorprog.empirical import plan
from tensorprog.empirical.contraction import einsum

N1, N2, D, H = 4, 3, 5, 6


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def close(actual, expected, tolerance=1e-12):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def compiled(kernels):
    """The values of a function without arguments, compiled at once, and in half the time: without optimisations."""
    return jax.jit(kernels, compiler_options={"xla_backend_optimization_level": 0})()


ROWS = normal(1, N1, D), normal(2, N2, D)
SEQUENCES = normal(3, N1, 7, D), normal(4, N2, 7, D)
IMAGES = normal(5, N1, 6, 5, 4), normal(6, N2, 6, 5, 4)
TOKENS = jnp.arange(N1 * 7).reshape(N1, 7) % 9, jnp.arange(N2 * 7).reshape(N2, 7) ** 2 % 9
W, U, V = normal(7, D, H), normal(8, H, H), normal(9, H, 3)
B = normal(10, H)


def chain(w, u, v):
    """A net of three weights, each given as a function of the parameters."""
    return lambda p, x: jnp.tanh(jnp.tanh(x @ w(p)) @ u(p)) @ v(p)


def mlp(p, x):
    return jnp.tanh(jnp.tanh(x @ p["w"] + p["b"]) @ p["u"] * p["gain"]) @ p["v"]


def rnn(p, x):
    step = lambda h, row: (jnp.tanh(h @ p["u"] + row @ p["w"] + p["b"]), None)
    return jax.lax.scan(step, jnp.zeros((len(x), H)), x.swapaxes(0, 1), unroll=2)[0] @ p["v"]


def unrolled(p, x):
    h = jnp.zeros((len(x), H))
    for t in range(x.shape[1]):
        h = jnp.tanh(h @ p["u"] + x[:, t] @ p["w"])
    return h @ p["v"]


def stack(p, x):
    layer = lambda h, w: (jnp.tanh(h @ w["u"] + w["b"]), h.mean(-1))
    h, means = jax.lax.scan(layer, x @ p["w"], p["layers"], reverse=True)
    return h @ p["v"] + means.sum(0)[:, None]


def nested(p, x):
    """Stacked layers, each a recurrence over the sequence with that layer's weight."""

    def layer(x, u):
        def step(h, row):
            h = jnp.tanh(h @ u + row)
            return h, h

        return jax.lax.scan(step, jnp.zeros((x.shape[1], H)), x)[1], None

    return jax.lax.scan(layer, x.swapaxes(0, 1) @ p["w"], p["layers"]["u"])[0].mean(0) @ p["v"]


def convolved(p, x, **options):
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC"), **options}
    h = jnp.tanh(jax.lax.conv_general_dilated(x, p["w"], **options) + p["b"])
    return h.mean((1, 2)) @ p["v"]


def attention(p, x):
    """Heads by `vmap`, each with its own slice of the projections."""

    def head(q, k, v, o):
        scores = jnp.einsum("nsh,nth->nst", x @ q, x @ k) / 2
        return jax.nn.softmax(scores) @ (x @ v) @ o

    return jax.vmap(head)(p["q"], p["k"], p["value"], p["o"]).sum(0).mean(1)


def embedded(p, x):
    h = jnp.tanh(p["table"][x] * 2.0 + p["positions"])
    return jnp.tanh(h @ p["u"]).mean(1) @ p["v"]


def language(p, x):
    h = jnp.tanh(p["table"][x] @ p["u"])
    return h.mean(1) @ p["table"].T


def branching(p, x):
    """Two layers, of which an example takes one."""

    def one(row):
        left, right = lambda r: jnp.tanh(r @ p["w"]), lambda r: 2 * (r @ p["w2"]) @ p["u"]
        return jax.lax.cond(row.sum() > 0, left, right, row) @ p["v"]

    return jax.lax.map(one, x)


@jax.custom_jvp
def clipped(h):
    return jnp.clip(h, -1.0, 1.0)


clipped.defjvp(lambda h, t: (clipped(h[0]), t[0]))  # not the derivative of clip: the rule must be kept


def ruled(p, x):
    @jax.custom_vjp
    def dense(w, x):
        return x @ w

    dense.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, g: (3.0 * kept[1].T @ g, g @ kept[0].T))
    return clipped(dense(p["w"], x) @ p["u"]) @ p["v"]


def of(name):
    return lambda p: p[name]


FULL = {"w": W, "u": U, "v": V, "b": B, "gain": 1 + 0.1 * B}
LAYERS = {"u": normal(11, 4, H, H), "b": normal(12, 4, H)}
FILTERS = {"w": normal(13, 3, 2, 4, 8), "b": normal(14, 8), "v": normal(15, 8, 3)}
HEADS = {name: normal(16 + i, 2, D, 4) for i, name in enumerate(("q", "k", "value"))} | {"o": normal(20, 2, 4, 3)}
TABLE = {"table": normal(21, 9, H), "positions": normal(22, 7, H), "u": U, "v": V}
GATES = {"w": normal(23, D, 2 * H), "v": V}
S, G, X = "gram", "gradient", "jacobian"

#: name: (f, params, data, roads of some of them)
NETS = {
    "mlp": (mlp, FULL, ROWS, {"w": S, "u": S, "v": S, "b": "direct", "gain": "direct"}),
    "transposed": (chain(lambda p: p["w"].T, of("u"), of("v")), {**FULL, "w": W.T}, ROWS, {"w": S}),
    "reshaped": (chain(lambda p: p["w"].reshape(D, H), of("u"), of("v")), {**FULL, "w": W.ravel()}, ROWS, {"w": S}),
    "scaled": (chain(lambda p: 0.3 * -p["w"] / jnp.sqrt(5.0), of("u"), of("v")), FULL, ROWS, {"w": S}),
    "gained": (lambda p, x: p["g"] * mlp(p, x), {**FULL, "g": jnp.float64(2.0)}, ROWS, {"g": "direct"}),
    "gain of a weight": (
        chain(lambda p: p["g"] * p["w"], of("u"), of("v")), {**FULL, "g": jnp.float64(2.0)}, ROWS, {"w": S, "g": X},
    ),
    "a number beside an array": (
        chain(lambda p: p["w"] + p["g"], lambda p: p["u"] - p["g"] * jnp.ones((H, H)), of("v")),
        {**FULL, "g": jnp.float64(0.3)}, ROWS, {"w": S, "u": S},
    ),
    "a number and a constant": (
        chain(lambda p: p["g"] + jnp.ones_like(p["w"]), of("u"), of("v")), {**FULL, "g": jnp.float64(0.3)}, ROWS, {},
    ),
    "cast": (chain(lambda p: p["w"].astype(jnp.float64), of("u"), of("v")), FULL, ROWS, {"w": S}),
    "tied": (chain(of("w"), lambda p: p["u"] @ jnp.eye(H), of("v")), FULL, ROWS, {"u": X}),
    "twice": (lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"] @ p["u"]) @ p["u"]) @ p["v"], FULL, ROWS, {"u": S}),
    "with its transpose": (
        lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"] @ p["u"]) @ p["u"].T) @ p["v"], FULL, ROWS, {"u": S},
    ),
    "autoencoder": (lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T, {"w": W}, ROWS, {"w": S}),
    "symmetrised": (chain(of("w"), lambda p: p["u"] + p["u"].T, of("v")), FULL, ROWS, {"u": S}),
    "low rank": (
        chain(lambda p: p["w"] + p["a"] @ p["c"], of("u"), of("v")),
        {**FULL, "a": normal(24, D, 2), "c": normal(25, 2, H)}, ROWS, {"w": S, "a": X, "c": X},
    ),
    "mean added": (chain(lambda p: 1.0 + p["w"], of("u"), of("v")), FULL, ROWS, {"w": S}),
    "gates": (lambda p, x: jnp.tanh(x @ p["w"][:, :H]) * jnp.exp(x @ p["w"][:, H:]) @ p["v"], GATES, ROWS, {"w": S}),
    "gates that overlap": (
        lambda p, x: jnp.tanh(x @ p["w"][:, :H]) * jnp.exp(x @ p["w"][:, 2 : H + 2]) @ p["v"], GATES, ROWS, {"w": X},
    ),
    "heads of one weight": (
        lambda p, x: jnp.einsum("nd,dhk->nhk", x, p["w"].reshape(D, 2, H)).prod(1) @ p["v"], GATES, ROWS, {"w": S},
    ),
    "weight norm": (
        chain(lambda p: p["w"] / jnp.linalg.norm(p["w"], axis=0), of("u"), of("v")), FULL, ROWS, {"w": X, "u": S},
    ),
    "masked": (chain(lambda p: p["w"] * jnp.tri(D, H), of("u"), of("v")), FULL, ROWS, {"w": X}),
    "frozen": (chain(lambda p: jax.lax.stop_gradient(p["w"]), of("u"), of("v")), FULL, ROWS, {"w": "unused"}),
    "on the left": (lambda p, x: jnp.tanh(p["w"].T @ x.T).T @ p["v"], FULL, ROWS, {"w": S}),
    "every second": (lambda p, x: jnp.tanh(x @ p["w"][:, ::2]) @ p["v"][1:4], FULL, ROWS, {"w": S, "v": S}),
    "spectrum": (chain(lambda p: jnp.fft.rfft(p["w"], 2 * H - 2).real, of("u"), of("v")), FULL, ROWS, {"w": X}),
    "phases": (
        lambda p, x: jnp.abs(x @ p["w"].astype(complex) * jnp.exp(1j * p["b"])) @ p["v"], FULL, ROWS, {"w": X, "v": S},
    ),
    "spread over sites": (
        lambda p, x: jnp.tanh(jnp.einsum("ntd,tdh->nth", x, jnp.broadcast_to(p["w"], (7, D, H)))).mean(1) @ p["v"],
        FULL, SEQUENCES, {"v": S},
    ),
    "weights of each site": (
        lambda p, x: jnp.tanh(jnp.einsum("ntd,tdh->nth", x, p["sites"])).mean(1) @ p["v"],
        {"sites": normal(29, 7, D, H), "v": V}, SEQUENCES, {"sites": S},
    ),
    "layers by number": (
        lambda p, x: jax.lax.fori_loop(0, 4, lambda i, h: jnp.tanh(h @ p["layers"]["u"][i]), x @ p["w"]) @ p["v"],
        {**FULL, "layers": LAYERS}, ROWS, {"layers']['u": X, "w": S},
    ),
    "sequence": (lambda p, x: mlp(p, x).mean(1), FULL, SEQUENCES, {"w": G, "u": G}),
    "scanned": (rnn, FULL, SEQUENCES, {"w": G, "v": S, "b": "direct"}),
    "unrolled": (unrolled, FULL, SEQUENCES, {"v": S}),
    "stacked": (stack, {**FULL, "layers": LAYERS}, ROWS, {"layers']['u": S}),
    "nested loops": (nested, {**FULL, "layers": LAYERS}, SEQUENCES, {"v": S}),
    "indexed layers": (
        lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"] @ p["layers"]["u"][0]) @ p["layers"]["u"][2]) @ p["v"],
        {**FULL, "layers": LAYERS}, ROWS, {"layers']['u": S},
    ),
    "remat and jit": (lambda p, x: jax.jit(jax.checkpoint(mlp))(p, x), FULL, ROWS, {"w": S, "u": S}),
    "branches": (branching, {**FULL, "w2": 2 * W}, ROWS, {"w": S, "w2": S, "u": S, "v": S}),
    "rules of its own": (ruled, FULL, ROWS, {"w": X, "u": S, "v": S}),
    "convolution": (convolved, FILTERS, IMAGES, {"v": S, "b": "direct"}),
    "strides": (partial(convolved, window_strides=(2, 3), padding="VALID"), FILTERS, IMAGES, {"w": S}),
    "dilated": (
        partial(convolved, padding=((1, 2), (0, 3)), rhs_dilation=(2, 1), lhs_dilation=(1, 2)), FILTERS, IMAGES, {},
    ),
    "cropped": (partial(convolved, padding=((-1, 0), (2, -1))), FILTERS, IMAGES, {}),
    "grouped": (
        partial(convolved, feature_group_count=2), {**FILTERS, "w": normal(26, 3, 2, 2, 8)}, IMAGES, {"v": S},
    ),
    "depthwise": (partial(convolved, feature_group_count=4), {**FILTERS, "w": normal(27, 3, 2, 1, 8)}, IMAGES, {}),
    "filters first": (
        partial(convolved, dimension_numbers=("NHWC", "OIHW", "NHWC")),
        {**FILTERS, "w": normal(28, 8, 4, 2, 3)}, IMAGES, {},
    ),
    "heads by vmap": (attention, HEADS, SEQUENCES, {}),
    "embedding": (embedded, TABLE, TOKENS, {"positions": "direct", "v": S}),
    "embedding and readout": (language, TABLE, TOKENS, {"positions": "unused"}),
    "positions by number": (
        lambda p, x: (p["table"][x] * p["positions"][jnp.arange(7)]).mean(1) @ p["v"], TABLE, TOKENS, {"positions": G},
    ),
    "one token": (lambda p, x: jax.vmap(lambda i: jnp.tanh(p["table"][i[0]]) @ p["v"])(x), TABLE, TOKENS, {"table": S}),
    "outside the table": (
        lambda p, x: jnp.tanh(p["table"].at[x - 2].get(mode="fill", fill_value=0.5)).mean(1) @ p["v"],
        TABLE, TOKENS, {"table": G},
    ),
    "clipped to the table": (
        lambda p, x: jnp.tanh(jnp.take(p["table"], x + 3, axis=0, mode="clip")).mean(1) @ p["v"],
        TABLE, TOKENS, {"table": G},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_agrees_with_the_jacobian(name):
    f, params, (x1, x2), roads = NETS[name]
    known = empirical.ntk(f, params, x1, method="structured", explain=True).roads
    assert {path: known[f"['{path}']"] for path in roads} == roads
    kernel = partial(empirical.ntk, f, params, x1, x2, trace_axes=())
    close(*compiled(lambda: [kernel(method="structured"), kernel(method="jacobian")]))


@pytest.mark.parametrize(
    "name",
    ["scanned", "convolution", "grouped", "embedding and readout", "with its transpose", "nested loops", "embedding"],
)
def test_both_roads_agree(name, monkeypatch):
    f, params, (x1, x2), _ = NETS[name]
    kernel = partial(empirical.ntk, f, params, x1, x2)

    def by(road, **axes):
        monkeypatch.setattr(plan.cost, "roads_of", lambda net, blocks, groups: dict.fromkeys(groups, road))
        return kernel(method="structured", **axes)

    expected, *full, diagonal = compiled(
        lambda: [
            kernel(trace_axes=(), method="jacobian"),
            by("gram", trace_axes=()),
            by("gradient", trace_axes=()),
            by("gram", diagonal_axes=-1),
        ]
    )
    for found in full:
        close(found, expected)
    close(diagonal, np.einsum("ijtt->ijt", expected))


def sites(p, x):
    """Outputs (N, 7, 3)."""
    return jnp.tanh(jnp.tanh(x @ p["w"] + p["b"]) @ p["u"]) @ p["v"]


def dense(f, params, x1, x2):
    """(N1, N2, *O, *O), from whole Jacobians."""
    left, right = (jax.tree.leaves(jax.jacrev(f)(params, x)) for x in (x1, x2))
    flat = lambda j: np.asarray(j).reshape(*j.shape[:3], -1)
    return sum(np.einsum("istp,juvp->ijstuv", flat(a), flat(b)) for a, b in zip(left, right, strict=True))


MODES = [
    ({}, "ijstut->ijsu", 3),
    ({"trace_axes": ()}, "ijstuv->ijstuv", 1),
    ({"diagonal_axes": -1}, "ijstut->ijtsu", 1),
    ({"diagonal_axes": 0, "trace_axes": -1}, "ijstst->ijs", 3),
    ({"diagonal_axes": (0, 1)}, "ijstst->ijst", 1),
    ({"sum_axes": -1}, "ijstuv->ijsu", 1),
    ({"sum_axes": 0}, "ijstut->ij", 3),
    ({"sum_axes": 0, "diagonal_axes": 1}, "ijstut->ijt", 1),
    ({"sum_axes": (0, 1)}, "ijstuv->ij", 1),
]


@pytest.mark.parametrize("method", ["structured", "jacobian", "ntvp"])
def test_modes(method):
    (x1, x2), params = SEQUENCES, {name: FULL[name] for name in ("w", "b", "u", "v")}
    full = dense(sites, params, x1, x2)
    kernel = partial(empirical.ntk, sites, params, method=method)
    found = compiled(lambda: [kernel(x1, x2, **axes) for axes, _, _ in MODES] + [kernel(x1, diagonal_axes=-1)])
    for (_, subscripts, size), k in zip(MODES, found, strict=False):
        close(k, np.einsum(subscripts, full) / size)
    assert (found[-1] == found[-1].transpose(1, 0, 2, 4, 3)).all()


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", ["scanned", "embedding and readout"])
def test_blocks_change_no_value(name, batch_size):
    f, params, (x1, x2), _ = NETS[name]
    kernel = partial(empirical.ntk, f, params)
    split, expected, k = compiled(
        lambda: [
            kernel(x1, x2, method="structured", batch_size=batch_size),
            kernel(x1, x2, method="jacobian"),
            kernel(x1, method="structured", batch_size=batch_size),
        ]
    )
    close(split, expected)
    assert (k == k.T).all()


def test_terms_by_parameter():
    (x1, x2), lr = ROWS, {"w": 2.0, "u": 0.5, "v": 1.0, "b": 3.0, "gain": 0.0}
    more = FULL | {"name": 3}  # a leaf that is no parameter
    rates = lr | {"name": 1.0}
    by_parameter = partial(empirical.ntk_by_parameter, mlp, more, x1, x2, lr=rates)
    alone = lambda name: empirical.ntk(lambda p, x: mlp({**FULL, name: p}, x), FULL[name], x1, x2, method="jacobian")
    parts, plain, expected, total = compiled(
        lambda: [
            by_parameter(),
            by_parameter(method="jacobian"),
            {name: alone(name) for name in lr},
            empirical.ntk(mlp, FULL, x1, x2, lr=lr),
        ]
    )
    for found in (parts, plain):
        assert found.pop("name") is None
        for name, part in found.items():
            reference = np.asarray(expected[name])
            np.testing.assert_allclose(part, lr[name] * reference, rtol=0, atol=1e-12 * np.abs(reference).max())
        close(sum(found.values()), total)


def test_terms_of_a_program_by_name():
    program = tp.nets.ZOO["mlp"]
    params = tp.init(program, jax.random.key(0), 8)
    x = normal(30, 3, 4)
    parts = empirical.ntk_by_parameter(program, params, x)
    assert set(parts) == set(params)
    close(sum(parts.values()), empirical.ntk(program, params, x))


@pytest.mark.parametrize(
    ("lr", "batch_size"),
    [(None, None), (2.0, 2), ({"w": 0.5, "u": 1.0, "v": 2.0, "b": jnp.arange(6.0), "gain": 0.0}, 3)],
)
def test_vector_product(lr, batch_size):
    (x1, x2), v1, v2 = ROWS, normal(31, N1, 3), normal(32, N2, 3)
    full = partial(empirical.ntk, mlp, FULL, trace_axes=(), lr=lr, method="jacobian")
    product = partial(empirical.ntk_vector_product, mlp, FULL, x1, lr=lr, batch_size=batch_size)
    found, same, cross, own = compiled(lambda: [product(v2, x2), product(v1), full(x1, x2), full(x1)])
    close(found, np.einsum("ijst,jt->is", cross, v2))
    close(same, np.einsum("ijst,jt->is", own, v1))


def test_vector_product_of_a_program():
    program = tp.nets.ZOO["mlp"].replace({"W1.lr": 0.5})
    params = tp.init(program, jax.random.key(0), 8)
    x, v = normal(33, 3, 4), normal(34, 3)
    close(empirical.ntk_vector_product(program, params, x, v), np.asarray(empirical.ntk(program, params, x) @ v))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"v": normal(0, N1, 4)}, ValueError, r"v must have the shape of f's outputs.*\(4, 3\), got \(4, 4\)"),
        ({"v": "ones"}, TypeError, r"v must be an array of shape \(4, 3\), got str 'ones'"),
        ({"f": 3}, TypeError, "f must be a function"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive integer"),
    ],
)
def test_wrong_arguments_of_vector_products(change, error, text):
    with pytest.raises(error, match=text):
        empirical.ntk_vector_product(**{"f": mlp, "params": FULL, "x1": ROWS[0], "v": normal(0, N1, 3), **change})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"diagonal_axes": 0, "trace_axes": 0}, "one of trace_axes, diagonal_axes and sum_axes only"),
        ({"diagonal_axes": 1, "sum_axes": 1}, "one of trace_axes, diagonal_axes and sum_axes only"),
        ({"diagonal_axes": 2}, r"diagonal_axes has 2, and an example's outputs have shape \(7, 3\)"),
        ({"sum_axes": (0, 0)}, r"sum_axes=\(0, 0\) names an axis twice"),
    ],
)
def test_wrong_axes_are_named(change, text):
    with pytest.raises(ValueError, match=text):
        empirical.ntk(sites, FULL, SEQUENCES[0], **change)


def test_by_parameter_has_no_vector_products():
    with pytest.raises(ValueError, match="method='ntvp' is not known: pass 'auto', 'structured' or 'jacobian'"):
        empirical.ntk_by_parameter(mlp, FULL, ROWS[0], method="ntvp")  # pyright: ignore[reportArgumentType]


# -- plans -------------------------------------------------------------------------------------------------------------


def test_a_plan_says_what_will_be_done():
    found = empirical.ntk(mlp, FULL, ROWS[0], explain=True)
    assert found.method == min(found.costs, key=lambda name: found.costs[name])
    assert set(found.costs) == {"structured", "jacobian", "ntvp"}
    assert found.structured_share == 1.0
    lines = str(found).splitlines()
    assert lines[0].startswith(f"method     {found.method}")
    assert "  ['gain']  direct" in lines
    jacobian = empirical.ntk(mlp, FULL, ROWS[0], method="jacobian", explain=True)
    assert jacobian.structured_share == 0.0 and set(jacobian.roads.values()) == {"jacobian"}
    numbers = sum(leaf.size for leaf in FULL.values())
    assert jacobian.bytes > 2 * N1 * 3 * numbers * 8


def test_a_plan_counts_what_falls_back():
    f, params, (x1, _), _ = NETS["weight norm"]
    found = empirical.ntk(f, params, x1, method="structured", explain=True)
    used = sum(params[name].size for name in ("u", "v", "b", "gain"))
    assert found.structured_share == pytest.approx(used / (used + params["w"].size))


def test_a_plan_computes_nothing_and_takes_shapes():
    shapes = jax.eval_shape(lambda: FULL)
    big = jax.ShapeDtypeStruct((10_000, D), jnp.float64)
    found = jax.eval_shape(lambda p, x: empirical.ntk(mlp, p, x), shapes, big)
    assert found.shape == (10_000, 10_000)


def test_memory_bounds_the_blocks(monkeypatch):
    f, params, (x1, _), _ = NETS["scanned"]
    monkeypatch.setattr(plan, "MEMORY", 10_000)
    small = empirical.ntk(f, params, x1, explain=True, method="structured")
    assert small.block < N1 and small.bytes <= 2 * 10_000
    assert empirical.ntk(f, params, x1, explain=True, method="structured", batch_size=3).block == 3


def test_wide_layers_go_by_structure():
    """Gram matrices cost N²·width, Jacobians N²·width²."""
    params = {"w": jnp.ones((8, 512)), "u": jnp.ones((512, 512)), "v": jnp.ones((512, 10))}
    found = empirical.ntk(chain(of("w"), of("u"), of("v")), params, jnp.ones((16, 8)), explain=True)
    assert found.method == "structured"
    assert found.costs["jacobian"] > 30 * found.costs["structured"]


def test_weakly_typed_numbers_are_summed_in_their_own_precision():
    weak = jnp.asarray(1.0) * 1.0
    assert weak.dtype == jnp.float64 and weak.weak_type
    third = jnp.broadcast_to(weak / 3, (1, 1, 1, 1, 4))
    assert einsum("aketp,bletp->abekl", third, third).dtype == jnp.float64
    f = lambda p, x: p["g"] * (x @ p["w"])
    params = {"g": weak / 3, "w": jnp.full((D,), 1.0) / 3}
    found = empirical.ntk(f, params, ROWS[0], method="structured")
    assert found.dtype == jnp.float64
    close(found, np.asarray(empirical.ntk(f, {**params, "g": jnp.float64(1 / 3)}, ROWS[0], method="jacobian")), 1e-14)


@pytest.mark.parametrize("name", ["scanned", "embedding and readout"])
def test_derivatives_of_the_kernel(name):
    f, params, (x1, _), _ = NETS[name]
    slope = lambda method: jax.grad(lambda p: (empirical.ntk(f, p, x1, method=method) ** 2).sum())(params)
    found, expected = compiled(lambda: [slope("structured"), slope("jacobian")])
    jax.tree.map(partial(close, tolerance=1e-11), found, jax.tree.map(np.asarray, expected))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("rnn", (3, 4)), ("cnn_gap", (4, 4, 2)), pytest.param("transformer", (4, 3), marks=pytest.mark.slow)],
)
def test_programs_go_by_structure(name, shape):
    program = tp.nets.ZOO[name]
    params = tp.init(program, jax.random.key(0), 8)
    x = normal(40, 3, *shape)
    kernel = partial(empirical.ntk, program, params, x)
    assert kernel(explain=True, method="structured").structured_share >= 0.9
    close(*compiled(lambda: [kernel(method="structured"), kernel(method="jacobian")]))
