"""A plain JAX function becomes the program that one would have written, or is refused at its line."""

from __future__ import annotations

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
import zoo
from flax import nnx

import tensorprog as tp
from tensorprog.errors import KernelWarning
from tensorprog.importing.laws import laws
from tensorprog.nets import net

QUICK = ("mlp", "mlp_tied", "layernorm_mlp", "siamese")
SAMPLED = ("gru", "lstm", "cnn_maxpool")
BACKWARD = ("autoencoder_tied",)
LONG = ("mlp_two_widths", "resnet_mlp", "cnn_flatten", "transformer", "gcn", "unet")


def imported(name: str, **keywords) -> tp.Program:
    return tp.from_jax(plain.NETS[name], *net(name).inputs, **keywords)


def listing(program: tp.Program) -> list[str]:
    """A listing without its first line and the lines of its sources."""
    lines = str(program).splitlines()[1:]
    return [" ".join(word for word in line.split() if ".py:" not in word) for line in lines]


def compared(name: str) -> None:
    own, ours = imported(name), net(name).program()
    x = zoo.data(ours, 2)
    for one, other in zip(*(jax.tree.leaves(_both(p, x)) for p in (own, ours)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12 * float(np.abs(other).max()))


def _both(program: tp.Program, x):
    found = tp.kernels(program, x)
    return [(k.nngp, k.ntk) for k in ([found] if hasattr(found, "nngp") else found)]


@pytest.mark.parametrize("name", QUICK)
def test_kernels_are_those_of_the_program_written_by_hand(name):
    compared(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_kernels_are_those_of_the_program_written_by_hand_of_larger_nets(name):
    compared(name)


@pytest.mark.parametrize("name", ["mlp", "deep_sets", "cnn_gap"])
def test_the_listing_is_the_one_written_by_hand(name):
    assert listing(imported(name, check=False)) == listing(net(name).program())


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SAMPLED, *BACKWARD])
def test_the_finite_network_is_the_function_where_kernels_are_sampled(name):
    imported(name)


def test_the_same_model_twice_is_one_program():
    assert imported("layernorm_mlp", check=False).structure == imported("layernorm_mlp", check=False).structure


# ---- laws


def test_variances_of_initialisers():
    init = jax.nn.initializers
    cases = {
        "lecun": (init.lecun_normal(), 1.0, -1.0), "he": (init.he_normal(), 2.0, -1.0),
        "uniform": (init.lecun_uniform(), 1.0, -1.0), "glorot": (init.glorot_uniform(), 1.0, -1.0),
        "normal": (init.normal(0.5), 0.25, 0.0),
    }  # fmt: skip
    draws = [
        jax.make_jaxpr(lambda key, n=n: [fn(key, (n, n)) for fn, _, _ in cases.values()])(jax.random.key(0))
        for n in (97, 101, 103)
    ]
    for law, (_, c, p) in zip(laws((97, 101, 103), draws), cases.values(), strict=True):
        assert law.variance.p == p and law.variance.c == pytest.approx(c, rel=1e-5)
        assert law.problem is None and law.mean.c == 0


def test_orthogonal_entries_are_not_independent():
    draws = [
        jax.make_jaxpr(lambda key, n=n: [jax.nn.initializers.orthogonal()(key, (n, n))])(jax.random.key(0))
        for n in (97, 101, 103)
    ]
    (law,) = laws((97, 101, 103), draws)
    assert law.problem is not None and "orthogonal" in law.problem


# ---- refusals


def dense(n, key, **more):
    """Arrays of a small network, normal of variance 1."""
    shapes = {"U": (n, 3), "W": (n, n), "V": (n, n), "v": (n,)} | more
    keys = jax.random.split(key, len(shapes))
    return {name: jax.random.normal(k, s) for (name, s), k in zip(shapes.items(), keys, strict=True)}


def build(f, make=dense):
    """A build whose f gets the width first."""
    return lambda n, key: ((lambda p, x: f(n, p, x)), make(n, key))


def first(n, p, x):
    return jnp.tanh(x @ p["U"].T)


def scores(n, p, x):
    h = first(n, p, x)
    q, k = h @ p["W"] / n**0.5, h @ p["V"] / n**0.5
    return jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / n**0.5) @ h @ p["v"] / n**0.5


def one_key(n, key):
    return {name: jax.random.normal(key, shape) for name, shape in {"U": (n, 3), "v": (n,)}.items()}


def with_zeros(n, key):
    return dense(n, key) | {"W": jnp.zeros((n, n))}


def with_mean(n, key):
    p = dense(n, key)
    return p | {"W": p["W"] + 1.0}


def orthogonal(n, key):
    return dense(n, key) | {"W": jax.nn.initializers.orthogonal()(key, (n, n))}


REFUSED = {
    "n + 1": (build(lambda n, p, x: first(n, p, x) @ p["w"], lambda n, k: dense(n, k, w=(n + 1, n), U=(n + 1, 3))),
              "no fixed multiple of the width"),
    "n // 2": (build(lambda n, p, x: jnp.tanh(x @ p["A"].T).sum(-1) / n, lambda n, k: dense(n, k, A=(n // 2, 3))),
               "no fixed multiple of the width"),
    "n²": (build(lambda n, p, x: jnp.tanh(x @ p["A"].T).sum(-1) / n, lambda n, k: dense(n, k, A=(n**2 // 7, 3))),
           "no fixed multiple of the width"),
    "grows": (build(lambda n, p, x: jnp.tanh(first(n, p, x) @ p["W"]) @ p["v"] / n**0.5),
              "grows with the width like √n"),
    "vanishes": (build(lambda n, p, x: jnp.tanh(first(n, p, x) @ p["W"] / n) @ p["v"]),
                 "vanishes with the width like 1/√n"),
    "output": (build(lambda n, p, x: first(n, p, x) @ p["v"]), "the output grows with the width like √n"),
    "attention": (build(scores), "attention_fn=tp.attention_over_d"),
    "sort": (build(lambda n, p, x: jnp.sort(first(n, p, x)) @ p["v"] / n**0.5), "primitive sort"),
    "cumsum": (build(lambda n, p, x: jnp.cumsum(first(n, p, x), -1) @ p["v"] / n), "primitive cumsum"),
    "softmax": (build(lambda n, p, x: jax.nn.softmax(first(n, p, x)) @ p["v"]), "reduce_max over the width"),
    "W @ V": (build(lambda n, p, x: first(n, p, x) @ (p["W"] @ p["V"]) @ p["v"] / n**1.5),
              "two weights that are multiplied"),
    "elementwise": (build(lambda n, p, x: first(n, p, x) @ jnp.tanh(p["W"]) @ p["v"] / n), "used entry by entry"),
    "random": (build(lambda n, p, x: first(n, p, x) * jax.random.normal(jax.random.key(0), (n,)) @ p["v"] / n**0.5),
               "random numbers are drawn"),
    "zeros": (build(lambda n, p, x: first(n, p, x) @ p["W"] @ p["v"] / n**0.5, with_zeros), "starts at 0"),
    "mean": (build(lambda n, p, x: first(n, p, x) @ p["W"] @ p["v"] / n, with_mean), "entries of mean 1"),
    "orthogonal": (build(lambda n, p, x: first(n, p, x) @ p["W"] @ p["v"] / n**0.5, orthogonal), "made orthogonal"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_limit_is_refused_at_its_line(case):
    made, told = REFUSED[case]
    with pytest.raises(tp.ProgramError) as error:
        tp.from_jax(made, tp.Input(4, 3) if case == "attention" else tp.Input(3))
    assert told in str(error.value)
    assert "test_import.py:" in str(error.value)


def test_one_key_for_two_arrays_is_refused():
    with pytest.raises(tp.ProgramError, match="U and v are drawn from one random key"):
        tp.from_jax(build(lambda n, p, x: first(n, p, x) @ p["v"] / n**0.5, one_key), tp.Input(3))


def test_functions_that_mix_examples_are_refused():
    def f(n, p, x):
        h = first(n, p, x)
        return (h - h.mean(0)) @ p["v"] / n**0.5

    with pytest.raises(tp.ProgramError, match="mixes examples"):
        tp.from_jax(build(f), tp.Input(3))


def test_a_width_of_another_form_is_told_apart_from_a_fixed_size():
    """97 features are features at every width."""
    program = tp.from_jax(
        build(lambda n, p, x: first(n, p, x) @ p["v"] / n**0.5, lambda n, k: dense(n, k, U=(n, 97))), tp.Input(97)
    )
    assert program.structure.weights[0].cols == 97


# ---- the libraries


class Linen(nn.Module):
    n: int

    @nn.compact
    def __call__(self, x):
        h = nn.gelu(nn.Dense(self.n, kernel_init=nn.initializers.normal(1.0))(x))
        return nn.Dense(1, use_bias=False)(nn.relu(nn.Dense(self.n)(nn.LayerNorm()(h))))


class Nnx(nnx.Module):
    def __init__(self, n, rngs):
        self.first = nnx.Linear(3, n, rngs=rngs)
        self.norm = nnx.RMSNorm(n, rngs=rngs)
        self.second = nnx.Linear(n, n, rngs=rngs)
        self.readout = nnx.Linear(n, 1, use_bias=False, rngs=rngs)

    def __call__(self, x):
        h = nnx.gelu(self.first(x))
        return self.readout(h + nnx.relu(self.second(self.norm(h))))


@pytest.mark.slow
def test_linen():
    program = tp.from_flax(Linen, tp.Input(3))
    names = {p.name for p in program.structure.parameters}
    assert {"Dense_0.kernel", "Dense_1.bias", "LayerNorm_0.scale"} <= names


def test_nnx():
    with pytest.warns(KernelWarning) as told:
        program = tp.from_flax(lambda n: Nnx(n, nnx.Rngs(0)), tp.Input(3))
    assert any("first.kernel is not normal and its fan is fixed" in str(w.message) for w in told)
    assert [w.name for w in program.structure.weights] == ["first.kernel", "second.kernel", "readout.kernel"]
    assert any("relu" in line for line in listing(program))


def test_equinox():
    with pytest.warns(KernelWarning) as told:
        program = tp.from_equinox(lambda n, key: eqx.nn.MLP(3, "scalar", n, 2, key=key), tp.Input(3))
    assert any("layers.0.weight is not normal and its fan is fixed" in str(w.message) for w in told)
    assert [w.name for w in program.structure.weights] == [f"layers.{k}.weight" for k in range(3)]
    assert float(program.numbers["layers.1.weight.var"]) == pytest.approx(1 / 3, rel=1e-5)


# ---- beside the model itself


def ntk_parameterized(n, key):
    k = jax.random.split(key)
    p = {"U": jax.random.normal(k[0], (n, 5)), "v": jax.random.normal(k[1], (n,))}
    return lambda p, x: jax.nn.relu(x @ p["U"].T / 5**0.5) @ p["v"] / n**0.5, p


def standard(n, key):
    k = jax.random.split(key, 3)
    draw = lambda k, *shape: jax.random.normal(k, shape) / shape[-1] ** 0.5
    p = {"U": draw(k[0], n, 5), "W": draw(k[1], n, n) * 2**0.5, "v": draw(k[2], n)}
    return lambda p, x: jax.nn.relu(jax.nn.relu(x @ p["U"].T) @ p["W"].T) @ p["v"], p


@pytest.mark.parametrize(("model", "convention"), [(ntk_parameterized, "multiplier-std"), (standard, "standard")])
def test_models_converge_to_their_programs(model, convention):
    program = tp.from_jax(model, tp.Input(5))
    x = np.random.default_rng(0).standard_normal((3, 5))
    found = tp.compare(program, x, widths=(32, 128, 512), seeds=6, finite=model, convention=convention)
    assert "is the program" in found.checked
    assert -0.75 < found.rate < -0.3
