"""Random programs: both roads to their kernels agree, and finite networks with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agreement
from eager import eager
from hypothesis import find, given, note, settings
from programs import HEALTH, MOST, Sketch, Step, distinct, features, programs

import tensorprog as tp
from tensorprog.interpret.demand import Demand
from tensorprog.interpret.system import moments

LINEAR = ("matmul", "add", "bias", "site", "conv", "read")
"""Steps whose backward program is linear too: both roads are exact."""


def agrees(sketch: Sketch) -> bool:
    found = agreement(sketch.program, sketch.data())
    note(f"{sketch}\n{found}")
    return bool(found)


@pytest.mark.slow
@settings(max_examples=100)
@given(programs())
def test_both_roads_agree(sketch: Sketch) -> None:
    assert agrees(sketch)


@settings(max_examples=10)
@given(programs(8, LINEAR))
def test_both_roads_agree_on_linear_programs(sketch: Sketch) -> None:
    assert agrees(sketch)


# ---- the strategy


def test_programs_are_what_they_are_said_to_be() -> None:
    """Everything promised is among 200 of them; each is within what the limit theorems take, and is written out."""
    has: Counter[str] = Counter()
    for number, sketch in enumerate(distinct(200)):
        program = sketch.program
        report = tp.check(program) if number % 10 == 0 else None
        assert report is None or (report.ok and report.gia), str(sketch)
        assert len(program.structure.instructions) <= MOST
        has.update(features(program))
        has.update([f"{len(program.structure.instructions) // 5 * 5} instructions"])
    promised = ("tied", "transposed", "two widths", "window", "branch", "sites", "bias", "data", "several outputs",
                "two inputs", "product", "nonlinear", "Moment", "attention", "function of scalars",
                "15 instructions")  # fmt: skip
    assert all(has[name] >= 5 for name in promised), has


def test_a_sketch_is_its_source() -> None:
    sketch = distinct(20)[-1]
    space: dict[str, Any] = {"tp": tp, "jax": jax, "jnp": jnp, "np": np}
    exec(sketch.source, space)
    assert tp.trace(space["program"], *sketch.program.structure.inputs).structure == sketch.program.structure


# ---- what a wrong rule does


@pytest.fixture
def untied(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two products of one matrix taken for products of independent ones, unless they are of the same vector."""
    right = Demand.product_moment

    def wrong(self: Demand, system: Any, w: int, x: int, y: int, *rest: Any) -> Any:
        terms = right(self, system, w, x, y, *rest)
        return terms if x == y else (np.zeros_like(terms[0]), *terms[1:])

    moments.cache_clear()
    monkeypatch.setattr(Demand, "product_moment", wrong)
    yield
    moments.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("untied")
def test_a_wrong_rule_is_found_and_shrinks() -> None:
    """The smallest program that shows it has little more than the two products."""
    quiet = settings(max_examples=500, database=None, derandomize=True, suppress_health_check=HEALTH)
    found = find(programs(8, LINEAR), lambda sketch: not agrees(sketch), settings=quiet)
    assert len(found.program.structure.instructions) <= 12, str(found)
    assert "tied" in features(found.program)


# ---- finite networks

WIDTH, NETWORKS = 512, 64


@pytest.mark.full
@pytest.mark.parametrize("number", range(50))
def test_finite_networks_have_this_kernel(number: int) -> None:
    """The mean NTK of networks of one width is the limit, up to four standard errors and 10/n of it."""
    sketch = replace(distinct(50)[number], ends=(number % 4,))
    program, x = sketch.program, sketch.data()

    @jax.jit
    def one(key: jax.Array) -> jax.Array:
        params = tp.init(program, key, WIDTH)
        return tp.empirical.ntk(program, params, x, trace_axes=())  # with the program's learning rates

    networks = np.stack([np.asarray(one(key)) for key in jax.random.split(jax.random.key(number), NETWORKS)])
    with eager():
        limit = np.asarray(tp.kernels(program, x, samples=2**14).ntk)
    error = networks.std(0, ddof=1) / np.sqrt(NETWORKS)
    allowed = 4 * error + 10 / WIDTH * np.abs(limit).max()
    gap = np.abs(networks.mean(0) - limit)
    assert (gap <= allowed).all(), f"{sketch}\n{(gap / allowed).max()}\n{networks.mean(0)}\n{limit}"


# ---- programs that were found to be wrong

FOUND = {
    # the same Gaussians on both sides, in functions with numbers of their own
    "numbers": Sketch(2, "mask", 2.0, 2, (
        Step("conv", 1, 3, 6), Step("nonlin", 1, 2, 5), Step("conv", 0, 3, 5), Step("moment", 2, 0, 7),
        Step("scale", 0, 3, 6), Step("nonlin", 0, 2, 4), Step("add", 0, 0, 1), Step("site", 0, 1, 6),
        Step("scale", 2, 2, 2), Step("matmul", 3, 3, 5), Step("nonlin", 2, 2, 0),
    ), (3,)),
    "numbers of inputs": Sketch(2, "data", 0.0, 2, (
        Step("bias", 0, 0, 6), Step("nonlin", 0, 2, 4), Step("attend", 2, 0, 1), Step("nonlin", 0, 3, 1),
        Step("moment", 0, 1, 4),
    ), (2,)),
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("name", FOUND)
def test_what_was_wrong_agrees(name: str) -> None:
    sketch = FOUND[name]
    assert agreement(sketch.program, sketch.data())
