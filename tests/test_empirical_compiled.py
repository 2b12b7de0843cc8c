"""What was compiled for one empirical kernel serves the next, and is never stale."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensorprog import empirical
from tensorprog.empirical import compiled
from tensorprog.errors import KernelWarning

X = np.random.default_rng(0).standard_normal((4, 3))


def parameters(seed: int) -> dict[str, Any]:
    k = jax.random.split(jax.random.key(seed))
    return {"U": jax.random.normal(k[0], (3, 5)), "v": jax.random.normal(k[1], (5, 1))}


KERNELS: dict[str, Callable[..., Any]] = {
    "ntk": lambda f, p: empirical.ntk(f, p, X),
    "structured": lambda f, p: empirical.ntk(f, p, X, method="structured"),
    "ntvp": lambda f, p: empirical.ntk(f, p, X, method="ntvp"),
    "by parameter": lambda f, p: empirical.ntk_by_parameter(f, p, X)["U"],
    "product": lambda f, p: empirical.ntk_vector_product(f, p, X, jnp.ones((4, 1))),
    "nngp": lambda f, p: empirical.nngp(f, lambda key: p, X, seeds=1),
}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_a_loop_of_calls_compiles_once(kernel: Any, compilations: list[str]) -> None:
    def call(seed: int) -> np.ndarray:  # a new function at each call, as in a loop over models
        return np.asarray(kernel(lambda p, x: jax.nn.relu(x @ p["U"]) @ p["v"], parameters(seed)))

    for seed in (0, 1):
        call(seed)
    compilations.clear()
    again = [call(seed) for seed in (2, 3)]
    assert not compilations
    f = lambda p, x: jax.nn.relu(x @ p["U"]) @ p["v"]
    for found, seed in zip(again, (2, 3), strict=True):
        np.testing.assert_allclose(found, jax.jit(lambda p: kernel(f, p))(parameters(seed)), rtol=1e-12)


class Model:
    scale = 1.0
    shift: Any = np.zeros(5)
    slope: Any = np.ones(5)


MODEL = Model()


@jax.custom_jvp
def ruled(z: Any) -> Any:
    return jnp.tanh(z)


ruled.defjvp(lambda primals, tangents: (ruled(*primals), jnp.asarray(MODEL.slope) * tangents[0]))

CHANGES = {
    "a number": ("scale", 2.0),
    "an array's values": ("shift", np.arange(5.0)),
    "an array of a derivative rule": ("slope", np.arange(5.0)),
    "an array in place of a number": ("scale", np.arange(1.0, 6.0)),
}


@pytest.mark.parametrize(("name", "value"), CHANGES.values(), ids=CHANGES)
def test_what_a_function_reads_is_never_stale(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    f = lambda p, x: (ruled(x @ p["U"] + jnp.asarray(MODEL.shift)) * MODEL.scale) @ p["v"]
    known = lambda: jax.jit(lambda p: empirical.ntk(f, p, X))(parameters(0))
    before = np.asarray(empirical.ntk(f, parameters(0), X))
    np.testing.assert_allclose(before, known(), rtol=1e-12)
    monkeypatch.setattr(MODEL, name, value)
    after = np.asarray(empirical.ntk(f, parameters(0), X))
    np.testing.assert_allclose(after, known(), rtol=1e-12)
    assert not np.allclose(before, after)
    monkeypatch.undo()
    assert (np.asarray(empirical.ntk(f, parameters(0), X)) == before).all()


def test_shapes_dtypes_rates_and_options_are_told_apart() -> None:
    f = lambda p, x: jnp.tanh(x @ p["U"]) @ p["v"]
    p = parameters(0)
    whole = empirical.ntk(f, p, X)
    np.testing.assert_allclose(empirical.ntk(f, p, X[:2]), whole[:2, :2], rtol=1e-12)
    np.testing.assert_allclose(empirical.ntk(f, p, X, lr=2.0), 2 * whole, rtol=1e-12)
    np.testing.assert_allclose(empirical.ntk(f, p, X, lr={"U": 0.0, "v": 3.0}), 3 * _of_v(f, p), rtol=1e-12)
    single = empirical.ntk(f, jax.tree.map(lambda a: a.astype(jnp.float32), p), X.astype(np.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, whole, rtol=1e-4)


def _of_v(f: Any, p: Any) -> Any:
    return empirical.ntk_by_parameter(f, p, X)["v"]


def test_what_is_kept_is_bounded() -> None:
    for k in range(3):
        empirical.ntk(lambda p, x, k=k: x @ p * (k + 0.5), jnp.ones((3, 1)), X)
    assert compiled._kept.cache_info().currsize <= compiled.KEPT == compiled._kept.cache_info().maxsize


def test_a_function_that_draws_is_told_at_each_call() -> None:
    rng = np.random.default_rng(0)
    f = lambda p, x: x @ p * rng.uniform()
    for _ in range(2):
        with pytest.warns(KernelWarning, match="draws random numbers"):
            empirical.ntk(f, jnp.ones((3, 1)), X)
