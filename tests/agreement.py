"""Whether the two roads to the kernels agree: the recursion differentiated, and moments of the backward program.

The first is exact up to its own bounds, the second has standard errors where it draws. A program agrees when no entry
of any kernel is further off than a part in a million or three standard errors. Of many entries of many programs some
are, by chance: such a program is done again with 16 times the draws and another key, then with 64 times, and
only what stays apart is a disagreement.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jax
import numpy as np
from eager import eager

import tensorprog as tp
from tensorprog import limits
from tensorprog.interpret import system

SAMPLES = 2**14
AGAIN = ((1, False), (16, False), (16, True), (64, True))
ERRORS = 3.0
PART = 1e-6


@dataclass(frozen=True)
class Deviation:
    """How far the roads are apart: at most, and in one entry fixed before; `exact` where nothing was drawn."""

    worst: float
    first: float
    exact: bool
    where: str

    @property
    def small(self) -> bool:
        return self.worst <= ERRORS


@dataclass(frozen=True)
class Agreement:
    """What was found with more and more draws; roads agree if the last time they did."""

    tries: tuple[Deviation, ...]

    def __bool__(self) -> bool:
        return self.tries[-1].small

    def __str__(self) -> str:
        return "; ".join(f"{t.worst:.2f} standard errors in {t.where}" for t in self.tries)


def outputs(found: Any) -> tuple[tp.Kernels, ...]:
    return (found,) if isinstance(found, tp.Kernels) else found


def integrated(program: tp.Program) -> bool:
    """Whether the recursion's kernels are integrals, and not sampled."""
    return system.integrated(program.structure, system.output_targets(program.structure))


def deviation(program: tp.Program, x: Any, samples: int, key: Any, *, error: bool = False) -> Deviation:
    """The two roads beside each other, in standard errors, or with `error` in these and the recursion's own bounds."""
    own = jax.random.fold_in(key, 1)
    recursion = outputs(tp.kernels(program, x, error=error or not integrated(program), samples=samples, key=own))
    backward = outputs(tp.kernels(program, x, method="backward", error=True, samples=samples, key=key))
    return worst(list(entries(recursion, backward)))


def entries(left: tuple[tp.Kernels, ...], right: tuple[tp.Kernels, ...]) -> Iterator[tuple[str, Any, Any, Any]]:
    """(name, difference, its standard error, what is allowed beside) of each kernel of each output."""
    size = lambda kernel: np.abs(np.asarray(kernel)).max(initial=0.0)
    for number, (a, b) in enumerate(zip(left, right, strict=True)):
        for name in ("ntk", "nngp"):
            one, two = (np.asarray(getattr(k, name)) for k in (a, b))
            own, other = (0.0 if k.error is None else np.asarray(getattr(k.error, name)) for k in (a, b))
            assert np.isfinite(one).all() and np.isfinite(two).all(), f"{name} {number} is not finite"
            # A kernel that vanishes is estimated by squares of averages, which do not: to a part of the other outputs.
            beside = [] if one.any() else [size(getattr(k, name)) for k in (*left, *right)]
            allowed = PART * max(1e-3, size(one), size(two), *beside)
            yield f"{name} {number}", one - two, np.hypot(own, other), allowed


def worst(found: list[tuple[str, Any, Any, Any]]) -> Deviation:
    ratios = {name: np.abs(gap) / (error + allowed / ERRORS) for name, gap, error, allowed in found}
    most = max(ratios, key=lambda name: ratios[name].max())
    _, gap, error, allowed = found[0]
    exact = all((error <= allowed).all() for _, _, error, allowed in found)
    place = (0, len(gap) - 1, *(0,) * (gap.ndim - 2))
    return Deviation(
        float(ratios[most].max()), float(gap[place] / (error[place] + allowed / ERRORS)), exact,
        f"{most}{np.unravel_index(ratios[most].argmax(), ratios[most].shape)}".replace("np.int64", ""),
    )  # fmt: skip


def agreement(program: tp.Program, x: Any, *, samples: int = SAMPLES, seed: int = 0) -> Agreement:
    """The roads compared, and compared again with more draws while they are apart."""
    tries: list[Deviation] = []
    # The recursion's own bounds take many times as long as its kernels: they are asked for where draws don't help.
    for times, bounds in AGAIN:
        # What quadrature leaves out is no standard error: the second time there are draws.
        road = mock.patch.object(limits, "possible", return_value="particles") if times > 1 else nullcontext()
        with road, nullcontext() if bounds else eager():
            tries.append(deviation(program, x, times * samples, jax.random.key(seed + times), error=bounds))
        if tries[-1].small or tries[-1].exact:
            break
    return Agreement(tuple(tries))
