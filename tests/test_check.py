"""Which limit theorem applies, and whose line breaks it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp


def net(x, fn, back=False):
    n = tp.Width("n")
    W = tp.weight("W", n, n)
    s = tp.nonlin(fn, W @ (tp.weight("U", n, x.features) @ x))  # the function's line
    if back:
        s = W.T @ s  # the transpose's line
    return tp.weight("v", 1, n) @ s


def line(text: str) -> str:
    with open(__file__, encoding="utf-8") as source:
        number = next(n for n, written in enumerate(source, 1) if written.rstrip().endswith(text))
    return f"test_check.py:{number}"


def report(fn, **keywords) -> tp.Report:
    return tp.check(tp.trace(net, tp.Input(3), fn=fn, **keywords))


BOUNDED = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "cube and sine": lambda z: z**3 + jnp.sin(z),
    "z sin z": lambda z: z * jnp.sin(z),
    "twelfth power": lambda z: z**12,
    "root": lambda z: jnp.abs(z) ** 0.5,
    "bell": lambda z: jnp.exp(-z * z),
    "swish by hand": lambda z: z / (1 + jnp.exp(-z)),
    "log cosh": lambda z: jnp.log(jnp.cosh(z)),
    "zero": lambda z: 0.0 * z,
}


@pytest.mark.parametrize("name", BOUNDED)
def test_polynomially_bounded(name):
    for back in (False, True):
        found = report(BOUNDED[name], back=back)
        assert found.ok and found.gia and found.transposes == back
        assert len(found.reasons) == back and found.notes == ()


EXPONENTIAL = {
    "exp": jnp.exp,
    "exp by hand": lambda z: jnp.exp(z),
    "fast": lambda z: jnp.exp(5 * z),
    "slow": lambda z: jnp.exp(z / 10),
    "one side": lambda z: jnp.exp(-z) * (z < 0),
    "cosh": jnp.cosh,
    "1.5": lambda z: jnp.exp(jnp.abs(z) ** 1.5),
}


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_growth_below_a_gaussian_is_covered_without_transposes(name):
    found = report(EXPONENTIAL[name])
    assert found.ok and found.gia
    (reason,) = found.reasons
    assert str(reason.line) == line("# the function's line")
    assert "not polynomially bounded" in reason.why and "Tensor Programs I still covers" in reason.why
    assert not report(EXPONENTIAL[name], back=True).ok


@pytest.mark.parametrize("fn", [lambda z: jnp.exp(z * z), lambda z: jnp.exp(z * z / 50), lambda z: jnp.exp(jnp.exp(z))])
def test_growth_like_a_gaussian_is_not(fn):
    found = report(fn)
    assert not found.ok and found.gia
    assert "expectations need not exist" in found.reasons[0].why
    assert "none applies" in str(found) and "no theorem covers" in str(found)


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (jnp.log, "log(-0.53) is nan"),
        (jnp.sqrt, "sqrt(-0.53) is nan"),
        (lambda z: 1 / z, "grows like |z|^-1 at 0"),
        (lambda z: 1 / z**2, "grows like |z|^-2 at 0"),
    ],
)
def test_functions_that_a_gaussian_leaves(fn, text):
    found = report(fn)
    assert not found.ok and text in found.reasons[0].why


def test_singularities_that_are_integrable():
    assert report(lambda z: jnp.abs(z) ** -0.25).ok


def test_functions_of_several_arguments():
    def fn(x):
        n = tp.Width("n")
        a, b = (tp.weight(name, n, x.features) @ x for name in ("A", "B"))
        return tp.weight("v", 1, n) @ (a / b + tp.nonlin(lambda a, b: jnp.exp(-a * b), a, b) + a * b)

    found = tp.check(tp.trace(fn, tp.Input(3)))
    assert not found.ok
    assert [reason.instruction for reason in found.reasons] == ["s1 = g1 / g2", "s2 = lambda(g1, g2)"]


def test_numbers_that_a_function_holds_count():
    def declared(x, a):
        n = tp.Width("n")
        h = tp.weight("U", n, x.features) @ x
        return tp.weight("v", 1, n) @ tp.nonlin(lambda z: jnp.exp(a * z * z), h)

    assert not tp.check(tp.trace(declared, tp.Input(3), a=jnp.float64(0.5))).ok
    assert tp.check(tp.trace(declared, tp.Input(3), a=jnp.float64(-0.5))).ok


def test_transposes():
    found = report(jnp.tanh, back=True)
    assert found.ok and found.gia and found.transposes
    (reason,) = found.reasons
    assert str(reason.line) == line("# the transpose's line") and reason.instruction == "Wᵀ s1"
    assert "Ż term" in reason.why
    assert "nngp and ntk refuse" in str(found) and "limit still exists" in str(found)


def test_a_transpose_alone_is_another_random_matrix():
    def fn(x):
        n = tp.Width("n")
        s = tp.nonlin(jnp.tanh, tp.weight("U", n, x.features) @ x)
        return tp.weight("v", 1, n) @ (tp.weight("W", n, n).T @ s)

    assert not tp.check(tp.trace(fn, tp.Input(3))).transposes


def mean_readout(x, kind):
    n = tp.Width("n")
    s = tp.nonlin(jnp.tanh, tp.weight("U", n, x.features) @ x)
    c = tp.moment(lambda s: s, s)  # the average's line
    readout, shift = tp.weight("v", 1, n) @ s, tp.bias("b", 1)
    return {
        "moment": lambda: c,
        "function": lambda: tp.scalar(jnp.exp, c),
        "added": lambda: readout + c,
        "mean of sites": lambda: tp.mean(readout + c),
        "times bias": lambda: readout + c * shift,
        "one of two": lambda: (readout, c),
        "times readout": lambda: c * readout,
        "inside": lambda: tp.weight("w", 1, n) @ (c * s + c),
        "bias": lambda: readout + shift,
    }[kind]()


@pytest.mark.parametrize("kind", ["moment", "function", "added", "mean of sites", "times bias", "one of two"])
def test_averages_over_the_width_fail_the_gia_check(kind):
    found = tp.check(tp.trace(mean_readout, tp.Input(2, 3), kind=kind))
    assert found.ok and not found.gia and not found.transposes
    assert found.reasons[0].condition == "simple GIA check" and "average over the width" in found.reasons[0].why
    assert 'method="backward"' in str(found) and "limit still exists" in str(found)
    if kind == "moment":
        assert str(found.reasons[0].line) == line("# the average's line")


@pytest.mark.parametrize("kind", ["times readout", "inside", "bias"])
def test_averages_inside_do_not(kind):
    found = tp.check(tp.trace(mean_readout, tp.Input(2, 3), kind=kind))
    assert found.gia and found.reasons == ()


@pytest.mark.parametrize(
    ("fn", "place"),
    [(jnp.sign, "0"), (lambda z: jnp.where(z > 0.3, 1.0, z), "0.3"), (lambda z: jnp.floor(z), None)],
)
def test_jumps_are_noted(fn, place):
    (note,) = report(fn).notes
    assert "adds nothing to the NTK" in note
    assert place is None or f"jumps at {place};" in note


def test_jumps_are_seen_in_float32():
    with jax.enable_x64(False):
        assert len(report(lambda z: jnp.where(z > 0.3, 1.0, z)).notes) == 1
        assert report(jax.nn.relu).notes == () and report(lambda z: jnp.tanh(50 * z)).notes == ()
        assert report(lambda z: jnp.exp(2 * z)).ok and not report(lambda z: jnp.exp(z * z)).ok


def test_unused_instructions_do_not_count():
    def fn(x):
        n = tp.Width("n")
        h = tp.weight("U", n, x.features) @ x
        tp.nonlin(lambda z: jnp.exp(z * z), h)
        return tp.weight("v", 1, n) @ h

    assert tp.check(tp.trace(fn, tp.Input(3))).ok


def test_inside_a_transformation():
    seen = []

    def fn(var):
        found = tp.check(tp.trace(lambda x: tp.weight("v", 1, x.features, var=var) @ x, tp.Input(3)))
        seen.append(found)
        return var

    jax.jit(fn)(1.0)
    assert seen[0].ok and seen[0].gia


def test_str():
    assert str(report(jnp.tanh)).splitlines() == [
        "limit theorem:    applies",
        "simple GIA check: holds",
        "W and Wᵀ forward: no",
        "kernels:          nngp and ntk",
    ]
    text = str(report(jnp.exp, back=True))
    assert f"- {line('# the function' + chr(39) + 's line')}: s1 = exp(g1)" in text
    assert np.all([word in text for word in ("theorem's hypotheses", "forward use of W and Wᵀ")])


@pytest.mark.slow
def test_a_function_that_grows_too_fast_is_refused_where_it_does():
    """The same function with two numbers: the line is that of the number which is too large."""

    def net(x):
        n = tp.Width("n")
        g = tp.weight("U", n, x.features) @ x
        fn = lambda z, c: jnp.exp(c * z**2)
        h = tp.nonlin(fn, g, scalars=(0.01,))
        return tp.weight("v", 1, n) @ h + tp.weight("w", 1, n) @ tp.nonlin(fn, g, scalars=(0.4,))

    line = net.__code__.co_firstlineno + 5
    with pytest.raises(tp.ProgramError, match=rf"test_check.py:{line}"):
        tp.nngp(tp.trace(net, tp.Input(2)), jnp.ones((1, 2)))


@pytest.mark.parametrize(("fn", "what"), [(jnp.reciprocal, "grows like"), (jnp.sqrt, "is nan")])
def test_kernels_refuse_functions_that_are_undefined(fn, what):
    def net(x):
        n = tp.Width("n")
        return tp.weight("v", 1, n) @ tp.nonlin(fn, tp.weight("U", n, x.features) @ x)

    with pytest.raises(tp.ProgramError, match=what):
        tp.nngp(tp.trace(net, tp.Input(2)), jnp.ones((1, 2)))


@pytest.mark.full
@pytest.mark.slow
def test_kernels_refuse_functions_whose_numbers_are_scalars_of_the_input():
    """exp(c z²) with a Moment c: whether E exp(2 c z²) exists depends on the input; and a pole that c brings in."""

    def net(x, fn):
        n = tp.Width("n")
        g = tp.weight("U", n, x.features) @ x
        c = tp.moment(jnp.square, g)
        return tp.weight("v", 1, n) @ tp.nonlin(fn, g, scalars=(c,))

    program = tp.trace(net, tp.Input(2), fn=lambda z, c: jnp.exp(0.2 * c * z**2))
    assert np.isfinite(tp.nngp(program, 0.5 * jnp.ones((1, 2)))).all()
    with pytest.raises(tp.ProgramError, match="does not exist for z of variance 4"):
        tp.nngp(program, jnp.array([[0.5, 0.5], [2.0, 2.0]]))
    with pytest.raises(tp.ProgramError, match="grows like"):
        tp.nngp(tp.trace(net, tp.Input(2), fn=lambda z, c: c / z), jnp.ones((1, 2)))


def test_the_ntk_refuses_slopes_with_a_pole():
    def net(x):
        n = tp.Width("n")
        return tp.weight("v", 1, n) @ tp.nonlin(lambda z: jnp.sqrt(jnp.abs(z)), tp.weight("U", n, x.features) @ x)

    with pytest.raises(tp.ProgramError, match="does not exist"):
        tp.ntk(tp.trace(net, tp.Input(2)), jnp.ones((1, 2)))


def test_kernels_from_samples_are_said_to_be() -> None:
    assert "estimated from samples" in str(tp.check(tp.nets.ZOO["gru"]))
    assert not tp.check(tp.nets.ZOO["transformer"]).sampled and not tp.check(tp.nets.ZOO["batchnorm_mlp"]).sampled
