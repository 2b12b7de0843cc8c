"""One finite network trained, step by step, beside what its limit and its own linearisation say of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tensorprog import empirical
from tensorprog.comparison.arguments import as_given
from tensorprog.empirical.programs import learning_rates
from tensorprog.errors import bad_argument
from tensorprog.interpret.finite import apply, init
from tensorprog.predict import KernelWarning, gradient_descent
from tensorprog.program import Program

Array = jax.Array


@dataclass(frozen=True)
class Task:
    """Inputs in one batch, the first `count` of them to learn from, and their targets (count, *k)."""

    x: tuple[Array, ...]
    count: int
    y: Array

    @property
    def train(self) -> tuple[Array, ...]:
        return tuple(a[: self.count] for a in self.x)


@dataclass(frozen=True, eq=False)
class Path:
    """A trained network: after `steps` (T,) steps its outputs (T, N, *k) at all inputs, training inputs first.

    `limit` and `own`: the same outputs as the infinite-width kernel and the network's own kernel at its start predict
    them, both from the network's own f_0. `loss` (T,) as it was, `kernel_change` ‖Θ̂_T − Θ̂_0‖/‖Θ̂_0‖ and `moved`
    ‖θ_T − θ_0‖/‖θ_0‖ at the end.
    """

    steps: np.ndarray
    outputs: np.ndarray
    limit: np.ndarray
    own: np.ndarray
    loss: np.ndarray
    kernel_change: float
    moved: float


def curve(kernel: Any, task: Task, lr: float, start: Any, steps: Sequence[int]) -> np.ndarray:
    """Outputs (T, N, *k) at all inputs after gradient descent with a kernel (N, count, *S, *S) that stays.

    Asked for the whole grid whatever part of it a network needs: one compiled function then serves all.
    """
    n, sites = task.count, kernel.ndim // 2 - 1
    if sites and task.y.ndim > 1 + sites:  # independent rows of a readout over sites
        rows = [replace(task, y=task.y[..., k]) for k in range(task.y.shape[-1])]
        return np.stack([curve(kernel, row, lr, start[..., k], steps) for k, row in enumerate(rows)], -1)
    with warnings.catch_warnings():  # the end of training is not asked for, so its condition does not matter
        warnings.simplefilter("ignore", KernelWarning)
        predicted = gradient_descent(kernel[:n], task.y, lr)
        train, test = predicted(np.asarray(steps, np.int32), start[:n], kernel[n:], start[n:])
    return np.concatenate([np.asarray(train), np.asarray(test)], axis=1)


class Networks:
    """The program's networks of one width: functions compiled once, for all seeds."""

    def __init__(self, program: Program, width: int, task: Task, lr: float):
        dtype = task.x[0].dtype
        self.width, self.task, self.lr = width, task, lr
        draw = lambda key: jax.tree.map(lambda p: p.astype(dtype), init(program, key, width))
        x, train = as_given(task.x), as_given(task.train)
        self.init = jax.jit(draw)
        self.outputs = jax.jit(lambda params: apply(program, params, x))
        self.kernel = jax.jit(lambda params: empirical.ntk(program, params, x, train, trace_axes=()))
        rates = learning_rates(program, jax.eval_shape(draw, jax.random.key(0)))
        scaled = optax.stateless(lambda slopes, _: jax.tree.map(jnp.multiply, slopes, rates))
        optimiser = optax.chain(scaled, optax.sgd(lr))
        loss = lambda params: 0.5 * jnp.sum((apply(program, params, train) - task.y) ** 2)

        def step(_: Any, carry: Any) -> Any:
            params, state = carry
            updates, state = optimiser.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        self.advance: Callable[..., Any] = jax.jit(
            lambda params, steps: jax.lax.fori_loop(0, steps, step, (params, optimiser.init(params)))[0]
        )

    def path(self, key: Array, limit: Any, grid: Sequence[int], fall: float) -> Path:
        """One network, trained until its loss has fallen by the part `fall`, or to the end of the grid of steps."""
        start = params = self.init(key)
        first_kernel = self.kernel(params)
        if not bool(jnp.any(first_kernel)):
            raise bad_argument(
                "widths", f"a network of width {self.width} has an NTK of 0: none of its units acts on these inputs",
                "give larger widths",
            )  # fmt: skip
        outputs = [np.asarray(self.outputs(params))]
        for before, after in pairwise(grid):
            params = self.advance(params, after - before)
            outputs.append(np.asarray(self.outputs(params)))
            if not np.isfinite(outputs[-1]).all():
                raise bad_argument(
                    "lr", f"{self.lr:g} diverges at width {self.width}: the network's NTK is larger than the limit",
                    "give a smaller one, or larger widths",
                )  # fmt: skip
            if self._loss(outputs[-1]) <= (1 - fall) * self._loss(outputs[0]):
                break
        steps = np.array(grid[: len(outputs)])
        limit, own = (
            curve(kernel, self.task, self.lr, outputs[0], grid)[: len(steps)] for kernel in (limit, first_kernel)
        )
        loss = np.array([self._loss(f) for f in outputs])
        change = part(self.kernel(params), first_kernel)
        return Path(steps, np.stack(outputs), limit, own, loss, change, part(params, start))

    def _loss(self, outputs: np.ndarray) -> float:
        return float(0.5 * np.sum((outputs[: self.task.count] - np.asarray(self.task.y)) ** 2))


def part(after: Any, before: Any) -> float:
    """‖after − before‖/‖before‖ over all arrays of two trees."""
    norm = lambda tree: np.sqrt(sum(float(jnp.sum(jnp.square(a))) for a in jax.tree.leaves(tree)))
    return norm(jax.tree.map(jnp.subtract, after, before)) / norm(before)
