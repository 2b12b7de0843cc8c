"""The empirical kernels against a dense Jacobian, and what they promise of symmetry, batches and errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import empirical
from tensorprog.empirical import cost, kernels, plan

METHODS = ("structured", "jacobian", "ntvp")


def network(params, x):
    """A small dense network: x (N, 3) -> (N, 2, 4)."""
    hidden = jnp.tanh(x @ params["first"]["w"] + params["first"]["b"])
    return jnp.einsum("nh,hso->nso", hidden, params["readout"])


@pytest.fixture
def params():
    a, b, c = jax.random.split(jax.random.key(0), 3)
    return {
        "first": {"w": jax.random.normal(a, (3, 5)), "b": jax.random.normal(b, (5,))},
        "readout": jax.random.normal(c, (5, 2, 4)),
    }


@pytest.fixture
def x1():
    return jax.random.normal(jax.random.key(1), (7, 3))


@pytest.fixture
def x2():
    return jax.random.normal(jax.random.key(2), (4, 3))


def dense(f, params, x1, x2, weight=lambda name: 1.0):
    """(N1, N2, *O, *O), from whole Jacobians in numpy; `weight` gives a parameter's multiplier by its path."""
    left, right = (jax.tree_util.tree_leaves_with_path(jax.jacrev(f)(params, x)) for x in (x1, x2))
    outputs = f(params, x1).ndim - 1
    total = 0.0
    for (path, a), (_, b) in zip(left, right, strict=True):
        a, b = (np.asarray(j, np.float64).reshape(*j.shape[: outputs + 1], -1) for j in (a, b))
        product = np.tensordot(a, b, axes=(-1, -1))  # (N1, *O, N2, *O)
        total = total + weight(jax.tree_util.keystr(path)) * np.moveaxis(product, outputs + 1, 1)
    return total


def close(actual, expected, tolerance=1e-12):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("trace_axes", "subscripts", "size"),
    [
        (-1, "ijsotp->ijst", 4),
        (1, "ijsotp->ijst", 4),
        (0, "ijsotp->ijop", 2),
        (-2, "ijsotp->ijop", 2),
        ((), None, 1),
        ((0, 1), "ijsotp->ij", 8),
        ((-1, 0), "ijsotp->ij", 8),
    ],
)
def test_agrees_with_the_dense_jacobian_for_any_traced_axes(params, x1, x2, method, trace_axes, subscripts, size):
    full = dense(network, params, x1, x2)
    if subscripts is None:
        expected = full
    else:  # trace: the traced letter is the same on both sides
        left, right = subscripts.split("->")
        pairs = {4: ("p", "o"), 2: ("t", "s"), 8: ("tp", "so")}[size]
        expected = np.einsum(f"{left.translate(str.maketrans(*pairs))}->{right.translate(str.maketrans(*pairs))}", full)
    expected = expected / size
    close(empirical.ntk(network, params, x1, x2, trace_axes=trace_axes, method=method), expected)
    same = dense(network, params, x1, x1)
    if trace_axes == ():
        close(empirical.ntk(network, params, x1, trace_axes=(), method=method), same)


@pytest.mark.parametrize("method", METHODS)
def test_outputs_without_an_axis_give_the_plain_kernel(params, x1, x2, method):
    f = lambda params, x: network(params, x)[:, 1, 2]
    close(empirical.ntk(f, params, x1, x2, method=method), dense(f, params, x1, x2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7, 100, None])
def test_blocks_change_no_value(params, x1, x2, method, batch_size):
    ntk = partial(empirical.ntk, network, params, trace_axes=(), method=method, batch_size=batch_size)
    close(ntk(x1, x2), dense(network, params, x1, x2))
    close(ntk(x1), dense(network, params, x1, x1))


def test_memory_bounds_the_blocks(params, x1, monkeypatch):
    lengths = []
    blocked = lambda prepare, contract, x1, x2, limit: lengths.append(limit) or jnp.zeros((7, 7, 1, 1, 1))
    monkeypatch.setattr(kernels, "blocked", blocked)
    for memory in (2**28, 10_000, 1000):
        monkeypatch.setattr(plan, "MEMORY", memory)
        for method in METHODS:
            empirical.ntk(network, params, x1, trace_axes=(0, 1), method=method)
    # of 60 parameters and 8 outputs: a Jacobian has 3840 bytes, a direction of the parameters 480
    assert lengths == [7, 7, 7, 4, 2, 7, 1, 1, 1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_size", [2, 7])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_symmetric_to_the_last_bit(params, x1, method, batch_size, dtype):
    params, x1 = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, x1))
    k = empirical.ntk(network, params, x1, method=method, batch_size=batch_size)
    assert k.dtype == dtype
    assert (k == k.transpose(1, 0, 3, 2)).all()
    flat = k.transpose(0, 2, 1, 3).reshape(14, 14)
    assert np.linalg.eigvalsh(flat).min() > -1e-5 * float(flat.max())


@pytest.mark.parametrize("method", METHODS)
def test_float32_is_near_float64(params, x1, x2, method):
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, x1, x2))
    close(empirical.ntk(network, *single, method=method), empirical.ntk(network, params, x1, x2), 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_summed_in_single(params, x1, method):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, x1))
    k = empirical.ntk(network, *half, method=method)
    close(k.astype(jnp.float64), empirical.ntk(network, params, x1), 0.05)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("lr", "weight"),
    [
        (0.3, lambda name: 0.3),
        ({"first": 2.0, "readout": 0.0}, lambda name: 2.0 * ("first" in name)),
        (
            {"first": {"w": 0.5, "b": 3.0}, "readout": -1.0},
            lambda name: {"w": 0.5, "b": 3.0}.get(name[-3], -1.0),
        ),
    ],
)
def test_learning_rates_weigh_the_terms(params, x1, x2, method, lr, weight):
    k = empirical.ntk(network, params, x1, x2, trace_axes=(), lr=lr, method=method)
    close(k, dense(network, params, x1, x2, weight))


@pytest.mark.parametrize("method", METHODS)
def test_a_learning_rate_may_be_an_array_over_the_parameter(params, x1, method):
    mask = jnp.arange(5) % 2.0  # freezes every second bias
    first = lambda params, x: network({**params, "first": {**params["first"], "b": params["first"]["b"] * mask}}, x)
    only = lambda lr: {"first": {"w": 0.0, "b": lr}, "readout": 0.0}
    frozen = {**params, "first": {**params["first"], "b": jnp.zeros(5)}}  # b·mask = b there, so only d/db differs
    close(
        empirical.ntk(network, frozen, x1, lr=only(mask), method=method),
        empirical.ntk(first, frozen, x1, lr=only(1.0), method=method),
    )


@pytest.mark.parametrize("method", METHODS)
def test_leaves_that_are_not_parameters_are_handed_through(x1, x2, method):
    params = {"w": jnp.ones((3, 2)), "phi": jnp.tanh, "power": 2, "gain": 1.5, "index": jnp.array([1, 0]), "none": None}

    def f(params, x):
        return params["gain"] * params["phi"](x @ params["w"])[:, params["index"]] ** params["power"]

    plain = lambda w, x: f({**params, "w": w}, x)
    close(empirical.ntk(f, params, x1, x2, trace_axes=(), method=method), dense(plain, params["w"], x1, x2))
    close(empirical.ntk(f, params, x1, x2, lr=2.0, method=method), 2.0 * empirical.ntk(plain, params["w"], x1, x2))


@pytest.mark.parametrize("method", METHODS)
def test_inputs_may_be_a_pytree(params, x1, x2, method):
    f = lambda params, x: network(params, x["row"]) * x["gain"][0][:, None, None]
    batch = lambda x: {"row": x, "gain": [jnp.arange(1, len(x) + 1)]}  # integers need no derivative
    x1, x2 = batch(x1), batch(x2)
    close(empirical.ntk(f, params, x1, x2, trace_axes=(), method=method), dense(f, params, x1, x2))


def test_numpy_arrays_do(params, x1):
    as_numpy = jax.tree.map(np.asarray, params)
    close(empirical.ntk(network, as_numpy, np.asarray(x1)), empirical.ntk(network, params, x1))


def test_examples_are_taken_one_at_a_time(params, x1):
    centred = lambda params, x: network(params, x) - network(params, x).mean(0)  # across the batch: 0 on each alone
    with pytest.warns(tp.predict.KernelWarning, match="mixes the examples"):
        assert np.abs(empirical.ntk(centred, params, x1)).max() < 1e-20


def test_a_shared_parameter_counts_all_its_uses(x1):
    f = lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w)
    w = jax.random.normal(jax.random.key(3), (3, 3))
    for method in METHODS:
        close(empirical.ntk(f, w, x1, trace_axes=(), method=method), dense(f, w, x1, x1))


@pytest.mark.parametrize("method", METHODS)
def test_jit_and_vmap(params, x1, x2, method):
    ntk = partial(empirical.ntk, network, method=method, batch_size=3)
    close(jax.jit(ntk)(params, x1, x2), ntk(params, x1, x2))
    close(jax.jit(ntk)(params, x1), ntk(params, x1))
    seeds = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    both = jax.vmap(lambda p: ntk(p, x1))(seeds)
    close(both[0], ntk(params, x1))
    assert (both == both.transpose(0, 2, 1, 4, 3)).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_size", [pytest.param(3, marks=pytest.mark.slow), 7])
def test_gradients_in_parameters_inputs_and_learning_rates(params, x1, method, batch_size):
    weights = jax.random.normal(jax.random.key(4), (7, 7, 2, 2))

    def loss(ntk, params, x, lr):
        return jnp.sum(weights * ntk(params, x, lr))

    def naive(params, x, lr):
        rows = jax.tree.leaves(jax.tree.map(lambda j: j.reshape(7, 2, 4, -1), jax.jacrev(network)(params, x)))
        return lr * sum(jnp.einsum("isop,jtop->ijst", row, row) for row in rows) / 4

    ours = lambda params, x, lr: empirical.ntk(network, params, x, lr=lr, method=method, batch_size=batch_size)
    actual = jax.grad(partial(loss, ours), argnums=(0, 1, 2))(params, x1, 1.5)
    expected = jax.grad(partial(loss, naive), argnums=(0, 1, 2))(params, x1, 1.5)
    jax.tree.map(partial(close, tolerance=1e-11), actual, jax.tree.map(np.asarray, expected))


def test_closed_over_tracers_do_in_f(params, x1):
    def trace_of_kernel(gain):
        return jnp.trace(empirical.ntk(lambda p, x: gain * network(p, x), params, x1, trace_axes=(0, 1)))

    assert np.isclose(jax.jit(jax.grad(trace_of_kernel))(2.0), 4 * trace_of_kernel(1.0))  # d(g²)/dg = 2 g


def scanned(params, x):
    step = lambda h, _: (jnp.tanh(h @ params["w"]), None)
    return jax.lax.scan(step, x, length=20)[0] @ params["v"]


def convolved(params, x):
    return jax.lax.conv(x, params["w"], (1, 1), "SAME").sum((2, 3)) @ params["v"]


def test_multiply_adds_are_counted_through_loops_and_convolutions(params, x1):
    shared = {"w": jnp.ones((3, 3)), "v": jnp.ones((3, 1))}
    filters = {"w": jnp.ones((5, 2, 3, 3)), "v": jnp.ones((5, 1))}
    counted = lambda f, *args: cost.multiply_adds(jax.make_jaxpr(f)(*args).jaxpr)
    assert counted(network, params, x1[:1]) == 3 * 5 + 5 * 8
    assert counted(jax.jit(scanned), shared, x1[:1]) == 20 * 9 + 3
    assert counted(convolved, filters, jnp.ones((1, 2, 8, 8))) == 8 * 8 * 5 * 2 * 9 + 5


def test_activations_are_counted_and_weights_are_not():
    def f(w, x):
        return jnp.tanh(x @ w.T.T) @ w.T

    jaxpr = jax.make_jaxpr(f)(jnp.ones((2, 7)), jnp.ones((1, 2))).jaxpr
    assert cost.activations(jaxpr, set(jaxpr.invars[1:])) == (8 * (7 + 7 + 2), 8 * 7)
    shared = {"w": jnp.ones((3, 3)), "v": jnp.ones((3, 1))}
    jaxpr = jax.make_jaxpr(scanned)(shared, jnp.ones((1, 3))).jaxpr
    assert cost.activations(jaxpr, {jaxpr.invars[-1]}) == (8 * (20 * (3 + 3) + 1), 8 * 3)


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"f": {"not": "a function"}}, TypeError, r"f must be a function f\(params, x\)"),
        ({"f": lambda p, x: x.sum()}, ValueError, r"f must keep the leading axis.*for 2 of them it returns shape \(\)"),
        ({"f": lambda p, x: network(p, x)[0]}, ValueError, "f must keep the leading axis"),
        ({"f": lambda p, x: network(p, x).sum(0, keepdims=True)}, ValueError, "f must keep the leading axis"),
        ({"f": lambda p, x: network(p, x).argmax(-1)}, TypeError, "f must return a floating array, got dtype int"),
        ({"f": lambda p, x: (network(p, x), x)}, TypeError, "f must return one array, got tuple"),
        ({"f": lambda p, x: network(p, x)[:, :0]}, ValueError, "at least one output"),
        ({"params": {"n": 3, "gain": 1.0}}, ValueError, "params has no parameters.*jnp.asarray"),
        ({"params": {"w": jnp.ones(3) * 1j}}, TypeError, "params has a complex leaf"),
        ({"x1": jnp.zeros((0, 3))}, ValueError, r"x1 has no examples \(N = 0\)"),
        ({"x2": jnp.zeros((0, 3))}, ValueError, r"x2 has no examples \(N = 0\)"),
        ({"x1": "digits"}, TypeError, "x1 must be an array or a pytree of arrays.*'digits'"),
        ({"x1": [[1.0, 2.0, 3.0]]}, ValueError, "every leaf of x1 needs a leading axis.*jnp.asarray"),
        ({"x1": ()}, TypeError, "x1 holds no array"),
        ({"x1": (jnp.ones((2, 3)), jnp.ones((4, 3)))}, ValueError, r"x1 disagree.*\[2, 4\]"),
        ({"x2": (jnp.ones((2, 3)),)}, ValueError, "x1 and x2 must be the same kind of pytree"),
        ({"x2": jnp.ones((2, 4))}, ValueError, r"agree in all axes but the first, got shapes \(7, 3\) and \(2, 4\)"),
        ({"method": "fast"}, ValueError, "method='fast' is not known: pass 'auto', 'structured', 'jacobian' or 'ntvp'"),
        ({"trace_axes": 2}, ValueError, r"trace_axes has 2.*outputs have shape \(2, 4\)"),
        ({"trace_axes": (-3,)}, ValueError, "trace_axes has -3"),
        ({"trace_axes": (1, -1)}, ValueError, "names an axis twice"),
        ({"trace_axes": "last"}, ValueError, "trace_axes has 'l'"),
        ({"lr": {"first": 1.0}}, ValueError, "lr must be a pytree prefix of params"),
        (
            {"lr": {"first": jnp.ones(4), "readout": 1.0}},
            ValueError,
            r"an array of shape \(4,\): .* broadcasts to \(5,\)",
        ),
        ({"lr": "fast"}, ValueError, "lr has str 'fast': pass a number"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive integer or None, got 0"),
        ({"batch_size": 2.5}, ValueError, "batch_size must be a positive integer"),
    ],
)
def test_wrong_arguments_are_named(params, x1, change, error, text):
    arguments = {"f": network, "params": params, "x1": x1, **change}
    with pytest.raises(error, match=text):
        empirical.ntk(**arguments)


def test_an_explicit_axis_of_outputs_that_have_none_is_an_error(params, x1):
    with pytest.raises(ValueError, match=r"trace_axes has -1, and an example's outputs have shape \(\)"):
        empirical.ntk(lambda p, x: network(p, x)[:, 0, 0], params, x1, trace_axes=(-1,))


# -- nngp --------------------------------------------------------------------------------------------------------------


def draw(key):
    a, b = jax.random.split(key)
    return {"first": {"w": jax.random.normal(a, (3, 5)), "b": jnp.zeros(5)}, "readout": jax.random.normal(b, (5, 2, 4))}


@pytest.mark.parametrize("seeds", [3, [0, 1, 2]])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_nngp_averages_over_draws_and_the_last_axis(x1, x2, seeds, batch_size):
    expected = 0.0
    for seed in range(3):
        params = draw(jax.random.key(seed))
        expected = expected + np.einsum("iso,jto->ijst", network(params, x1), network(params, x2)) / 4 / 3
    close(empirical.nngp(network, draw, x1, x2, seeds=seeds, batch_size=batch_size), expected)


def test_nngp_of_one_batch_is_symmetric_and_jits(x1):
    k = empirical.nngp(network, draw, x1, seeds=5)
    close(k, np.asarray(empirical.nngp(network, draw, x1, x1, seeds=5)))
    assert (k == k.transpose(1, 0, 3, 2)).all()
    close(jax.jit(lambda x: empirical.nngp(network, draw, x, seeds=5))(x1), np.asarray(k))


def test_nngp_of_scalar_outputs_tends_to_the_second_moment(x1):
    linear = lambda w, x: x @ w  # K = ⟨x, x̄⟩, at any width
    k = empirical.nngp(linear, lambda key: jax.random.normal(key, (3,)), x1, seeds=4000)
    close(k, np.asarray(x1 @ x1.T), 0.1)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"draw": {"w": 1.0}}, TypeError, r"draw must be a function draw\(key\) -> params, got dict"),
        ({"seeds": 0}, ValueError, "seeds=0 leaves nothing to average"),
        ({"seeds": []}, ValueError, "leaves nothing to average"),
        ({"x1": jnp.zeros((0, 3))}, ValueError, r"x1 has no examples"),
        ({"f": None}, TypeError, "f must be a function"),
    ],
)
def test_nngp_names_wrong_arguments(x1, change, error, text):
    with pytest.raises(error, match=text):
        empirical.nngp(**{"f": network, "draw": draw, "x1": x1, **change})


# -- programs ----------------------------------------------------------------------------------------------------------


def mlp(x, *, rows=1):
    n = tp.Width("n")
    h = tp.nonlin(jnp.tanh, tp.weight("W", n, x.features, var=1.5) @ x + tp.bias("b", n, var=0.2))
    return tp.weight("v", rows, n, var=0.7) @ h + tp.bias("c", rows, var=0.3)


@pytest.mark.parametrize("rows", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_program_is_taken_through_apply(x1, x2, rows):
    program = tp.trace(mlp, tp.Input(3), rows=rows)
    params = tp.init(program, jax.random.key(5), 16)
    actual = empirical.ntk(program, params, x1, x2)
    full = dense(partial(tp.apply, program), params, x1, x2)
    close(actual, full if rows == 1 else np.einsum("ijkk->ij", full) / rows)


def test_sites_of_a_program_are_not_traced():
    program = tp.trace(mlp, tp.Input(4, 3))  # one readout at each of four sites
    params = tp.init(program, jax.random.key(5), 16)
    x = jax.random.normal(jax.random.key(6), (2, 4, 3))
    close(empirical.ntk(program, params, x), dense(partial(tp.apply, program), params, x, x))
    assert empirical.nngp(program, params, x).shape == (2, 2, 4, 4)


@pytest.mark.parametrize("rows", [1, 3])
def test_nngp_of_a_program_is_the_covariance_given_the_hidden_layer(x1, x2, rows):
    program = tp.trace(mlp, tp.Input(3), rows=rows)
    params = tp.init(program, jax.random.key(5), 16)
    h1, h2 = (np.tanh(np.sqrt(1.5 / 3) * x @ params["W"].T + np.sqrt(0.2) * params["b"]) for x in (x1, x2))
    close(empirical.nngp(program, params, x1, x2), 0.7 * h1 @ h2.T / 16 + 0.3)


def test_nngp_of_a_wide_vector_is_its_second_moment(x1):
    program = tp.trace(lambda x: tp.weight("W", tp.Width("n"), 3) @ x, tp.Input(3))
    params = tp.init(program, jax.random.key(5), 16)
    h = tp.apply(program, params, x1)
    close(empirical.nngp(program, params, x1), np.asarray(h @ h.T / 16))
    close(empirical.ntk(program, params, x1), np.asarray(x1 @ x1.T / 3))


@pytest.mark.parametrize("rows", [1, 3])
def test_the_learning_rates_of_a_program_are_its_own(x1, x2, rows):
    rates = {"W.lr": 0.5, "b.lr": 0.0, "c.lr": 3.0}
    program = tp.trace(mlp, tp.Input(3), rows=rows).replace(rates)
    params = tp.init(program, jax.random.key(5), 16)
    f = partial(tp.apply, program)
    lr = {name: rates.get(f"{name}.lr", 1.0) for name in params}
    close(empirical.ntk(program, params, x1, x2), empirical.ntk(f, params, x1, x2, lr=lr))
    ones = dict.fromkeys(params, 1.0)
    close(empirical.ntk(program, params, x1, x2, lr=ones), empirical.ntk(f, params, x1, x2))
    more = {**params, "spare": jnp.ones(2)}  # not the program's: no term, no error
    close(empirical.ntk(program, more, x1, x2), empirical.ntk(f, params, x1, x2, lr=lr))


def test_derivatives_in_the_learning_rates_of_a_program(x1):
    program = tp.trace(mlp, tp.Input(3))
    params = tp.init(program, jax.random.key(5), 16)
    kernel = lambda rate: empirical.ntk(program.replace({"W.lr": rate}), params, x1)
    slope = jax.jacfwd(kernel)(2.0)
    close(slope, kernel(1.0) - kernel(0.0))


def test_parameters_that_are_missing_are_named(x1):
    program = tp.trace(mlp, tp.Input(3))
    params = tp.init(program, jax.random.key(5), 16)
    del params["W"]
    for kernel in (empirical.ntk, empirical.nngp):
        with pytest.raises(tp.ProgramError, match="params: no W"):
            kernel(program, params, x1)


def with_mean(x, *, rows=1):
    n = tp.Width("n")
    h = tp.nonlin(jnp.sin, tp.weight("W", n, x.features) @ x)
    return tp.weight("v", rows, n) @ h + tp.bias("c", rows, var=0.3, mean=2.0) + 3.0


@pytest.mark.parametrize(("rows", "sites", "dtype"), [(3, (), jnp.float32), (1, (2,), jnp.float64)])
def test_nngp_of_a_program_has_the_mean_squared(rows, sites, dtype):
    program = tp.trace(with_mean, tp.Input(*sites, 3), rows=rows)
    plain = tp.trace(lambda x: with_mean(x, rows=rows) - 3.0, tp.Input(*sites, 3)).replace({"c.mean": 0.0})
    params = tp.init(program, jax.random.key(5), 4096)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    x = jax.random.normal(jax.random.key(6), (3, *sites, 3)).astype(dtype)
    found = empirical.nngp(program, params, x)
    assert found.dtype == dtype
    close(found, 25.0 + np.asarray(empirical.nngp(plain, params, x)), 1e-5)
    close(found, np.asarray(tp.nngp(program, x)), 0.01)


def test_a_program_without_inputs():
    def start(rows):
        n = tp.Width("n")
        return tp.weight("v", rows, n) @ tp.nonlin(jnp.sin, tp.bias("z", n, var=2.0, mean=0.5))

    for rows in (1, 3):
        program = tp.trace(partial(start, rows))
        params = tp.init(program, jax.random.key(0), 20_000)
        for kernel in ("ntk", "nngp"):
            found, limit = getattr(empirical, kernel)(program, params, None), getattr(tp, kernel)(program)
            assert found.shape == limit.shape == ()
            np.testing.assert_allclose(found, limit, rtol=0.05)
    with pytest.raises(tp.ProgramError, match="x1: the program has no inputs"):
        empirical.ntk(program, params, jnp.ones((2, 3)))
