"""Stripes of pairs: the same kernel whatever their size, compiled once for any number of inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import ZOO, data

import tensorprog as tp
from tensorprog import stripes
from tensorprog.functions.angles import angle
from tensorprog.interpret.equations import LinearEq
from tensorprog.interpret.plan import Run
from tensorprog.interpret.system import moments, output_targets
from tensorprog.nets import net

RNG = np.random.default_rng(0)
PROGRAMS = {"mlp": net("mlp").program(fn=jax.nn.relu, depth=4)} | {n: ZOO[n] for n in ("cnn_gap", "layernorm_mlp")}


def sized(monkeypatch: pytest.MonkeyPatch, block: int, panel: int) -> None:
    monkeypatch.setattr(stripes, "shape", lambda m: stripes.Shape(block, panel))


@pytest.mark.parametrize(
    "name", ["mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in ("cnn_gap", "layernorm_mlp"))]
)
def test_blocks_and_stripes_of_any_size_give_one_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = PROGRAMS[name]
    x, x2 = np.asarray(data(program, 7)), np.asarray(data(program, 5, 1))
    x = np.concatenate([x, x[:2], -x[:1]])  # equal ones in other blocks and stripes
    x2 = np.concatenate([x2, x[3:4]])
    found = {}
    for shape in ((16, 16), (2, 8), (4, 4)):
        sized(monkeypatch, *shape)
        found[shape] = tp.kernels(program, x, error=True), tp.kernels(program, x, x2), tp.ntk_by_parameter(program, x)
    whole = found.pop((16, 16))
    for parts in found.values():
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
        for kernel in (parts[0].nngp, parts[0].ntk):
            kernel = np.asarray(kernel)
            assert (kernel == kernel.T).all()
            assert kernel[0, 0] == kernel[0, 7] == kernel[7, 7]


def test_the_sizes_of_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    program = net("mlp").program(fn=jax.nn.relu, depth=1)
    x = np.asarray(data(program, 70), np.float32)
    here = tp.kernels(program, x)
    monkeypatch.setattr(stripes, "accelerated", lambda: True)
    assert stripes.shape(moments(program.structure, output_targets(program.structure))).block >= 1024
    there = tp.kernels(program, x)
    np.testing.assert_allclose(here.nngp, there.nngp, atol=1e-6)
    np.testing.assert_allclose(here.ntk, there.ntk, atol=1e-6)


def test_two_compilations_serve_twenty_numbers_of_inputs(fresh_process: Callable[[str], str]) -> None:
    printed = fresh_process(
        """
        import jax.monitoring
        import numpy as np
        import tensorprog as tp

        def net(x):
            n = tp.Width("n")
            return tp.weight("v", 1, n) @ tp.nonlin(jax.nn.relu, tp.weight("U", n, x.features) @ x + tp.bias("b", n))

        program = tp.trace(net, tp.Input(3))
        x = np.random.default_rng(0).standard_normal((1000, 3))
        compiled = []
        jax.monitoring.register_event_duration_secs_listener(
            lambda name, seconds, **more: compiled.append(name) if name.endswith("backend_compile_duration") else None
        )
        for n in (*range(1, 18), 300, 600, 1000):
            assert tp.kernels(program, x[:n]).ntk.shape == (n, n)
        print(len(compiled))
        """
    )
    assert int(printed) <= 2


def test_loops_are_not_filled_up_from_small_images_to_large_ones() -> None:
    """What a network that pools takes is what its equations take, not its first images' size in each layer."""

    def net(x: Any) -> Any:
        n = tp.Width("n")
        for k in range(3):
            w = tp.weight(f"W{k}", n, x.features, window=(3, 3), var=2.0)
            x = tp.nonlin(jax.nn.relu, tp.conv(w, x))
            x = tp.pool(x, (2, 2), (2, 2)) if k else x
        return tp.weight("v", 1, n) @ tp.mean(x)

    program = tp.trace(net, tp.Input(8, 8, 2))
    m = moments(program.structure, output_targets(program.structure))
    groups = [g for s in m.cross.steps for level in (s.levels if isinstance(s, Run) else (s,)) for g in level]
    own = sum(e.cells.size for e in m.systems[1].equations if isinstance(e, LinearEq))
    assert sum(g.arrays["cells"].size for g in groups if "cells" in g.arrays) <= 2 * own


def test_known_inputs_inside_a_transformation_are_traced() -> None:
    program = net("mlp").program(fn=jax.nn.relu)
    x = np.asarray(data(program, 3))
    expected = tp.ntk(program, x)
    np.testing.assert_allclose(jax.jit(lambda: tp.ntk(program, x))(), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(lambda s: s * tp.ntk(program, x))(jnp.ones(2))[1], expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_angle_is_right_to_rounding(dtype: Any) -> None:
    near = np.sign(RNG.normal(size=50_000)) * 10.0 ** RNG.uniform(-16, 0, 50_000)
    theta = np.concatenate([RNG.uniform(-1, 1, 50_000), near, np.sign(near) - near, [0.0, 0.5, -0.5, 1.0, -1.0]])
    y, x = np.sin(np.pi / 2 * theta).astype(dtype), np.abs(np.cos(np.pi / 2 * theta)).astype(dtype)
    exact = np.arctan2(y.astype(np.longdouble), x.astype(np.longdouble))
    found = np.asarray(jax.jit(angle)(y, x))
    assert found.dtype == dtype
    assert (np.abs(found - exact) <= 1.5 * np.finfo(dtype).eps * np.abs(exact)).all()


def test_the_angle_at_the_edges_and_its_derivatives() -> None:
    y, x = jnp.asarray([0.0, 1.0, -1.0, 0.0, jnp.nan]), jnp.asarray([0.0, 0.0, 0.0, 1.0, 1.0])
    np.testing.assert_allclose(angle(y, x), [0, np.pi / 2, -np.pi / 2, 0, np.nan])
    for point in ([0.3, 0.7], [-0.7, 0.3], [0.5, 0.5]):
        at = jnp.asarray(point)
        for derive in (jax.grad, jax.hessian):
            mine, known = (derive(lambda v, f=f: f(v[0], v[1]))(at) for f in (angle, jnp.arctan2))
            np.testing.assert_allclose(mine, known, rtol=1e-12, atol=1e-12)
