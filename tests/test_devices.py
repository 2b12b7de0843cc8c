"""Kernels and finite networks over several devices: `jax.shard_map` as it comes, and arrays split over meshes."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.mark.full
def test_four_devices_give_the_values_of_one(fresh_process: Callable[[str], str]) -> None:
    """One process for all, since a process has as many devices as it starts with."""
    printed = fresh_process(
        """
        import os
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
        import jax.numpy as jnp
        import numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        import tensorprog as tp

        jax.config.update("jax_disable_most_optimizations", True)

        def net(x, fn):
            n = tp.Width("n")
            return tp.weight("v", 1, n) @ tp.nonlin(fn, tp.weight("U", n, x.features) @ x)

        def told(call):
            try:
                call()
            except tp.ProgramError as error:
                return str(error)
            raise AssertionError("it passed")

        x = np.random.default_rng(0).standard_normal((4, 3))
        relu, tanh = (tp.trace(net, tp.Input(3), fn=fn) for fn in (jax.nn.relu, jnp.tanh))
        params = tp.init(relu, jax.random.key(0), 8)
        assert len(jax.devices()) == 4
        plain, explicit = (
            jax.make_mesh((4,), ("d",), axis_types=(kind,)) for kind in (AxisType.Auto, AxisType.Explicit)
        )
        kernel, cross, outputs = tp.ntk(relu, x), tp.ntk(relu, x, x[:2]), tp.apply(relu, params, x)
        same = lambda found, known: np.testing.assert_allclose(found, known, rtol=1e-12, atol=1e-14)
        for mesh in (plain, explicit):
            split = jax.device_put(x, NamedSharding(mesh, P("d")))
            spread = lambda fn, **more: jax.jit(
                jax.shard_map(fn, mesh=mesh, in_specs=P("d"), out_specs=P("d"), **more)
            )
            same(spread(lambda a: tp.ntk(relu, a, x[:2]))(split), cross)
            same(spread(lambda a: tp.apply(relu, params, a))(split), outputs)
            same(tp.ntk(relu, split), kernel)
            same(tp.apply(relu, params, split), outputs)
            same(jax.jit(lambda a: tp.apply(relu, params, a))(split), outputs)
            if mesh is plain:
                same(jax.jit(lambda a: tp.ntk(relu, a))(split), kernel)
                one_layer = lambda a: tp.nngp(tanh, a, x[:2])
                print(told(lambda: spread(one_layer)(split)))
                same(spread(one_layer, check_vma=False)(split), one_layer(x))
            else:
                print(told(lambda: jax.jit(lambda a: tp.ntk(relu, a))(split)))
                with jax.set_mesh(explicit):
                    same(tp.ntk(relu, split), kernel)
        """
    )
    assert "check_vma=False" in printed and "axis_types=(jax.sharding.AxisType.Auto,)" in printed
