"""Gradient flow under any loss, by an ODE solver: f˙ = −η Θ ∇L(f)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.errors import ProgramError, bad_argument
from tensorprog.predict.arguments import array_of, at_least_zero, no_start, rate_of, square
from tensorprog.predict.arguments import problem as problem_of
from tensorprog.program import is_concrete

Array = jax.Array


def flow(
    loss: Callable[[Array, Any], Array],
    ktt: Any,
    y: Any,
    lr: Any = 1.0,
    *,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    max_steps: int = 100_000,
    solver: Any = None,
) -> Callable[..., tuple[Array, Any]]:
    """Gradient flow under a loss of your own, cross-entropy say, for a network whose kernel stays Θ.

    ḟ = −η Θ(·, X) ∇_f L(f(X), y)

    solved as f_t(·) = f_0(·) − Θ(·, X) a_t with ȧ = η ∇_f L(f_0 − Θa, y): the equation has the size of the training
    outputs, and one solution serves all inputs.

    **Arguments:**

    - `loss`: loss(f, y) -> a number, f (N, *k) the outputs at the training inputs; a sum or a mean, as you write it
      (`lambda f, y: optax.softmax_cross_entropy_with_integer_labels(f, y).sum()`).
    - `ktt`: Θ, (N, N), the same for each of the outputs, or (N, N, *S, *S) over outputs that depend on each other.
    - `y`: whatever `loss` takes; its leading axis is that of the examples.
    - `lr`: η. `rtol`, `atol`: tolerances of the solver, of the order of 1e-4 at the least in float32. `solver`: a
      diffrax solver, by default `Tsit5()`; a stiff one (`Kvaerno5()`) for long times of few outputs.

    **Returns:** g(t, f0_train, kst=None, f0_test=0.0) -> (train, test) as `gradient_flow`'s; `t` a finite time or an
    array of times. `f0_train` (N, *k) says what outputs there are; left out, 0 in the shape of floating `y`.

    **Raises:** `ProgramError` as `gradient_flow`, for a loss that returns no number, without diffrax
    (`pip install 'tensorprog[ode]'`), and when `max_steps` do not suffice.

    Source: Lee et al. 2019 (1902.06720), eqs. 5-6 and §2.5.
    """
    if not callable(loss):
        raise bad_argument("loss", f"{loss!r} is no function", "give loss(f, y) -> a number")
    square(ktt)
    rate = rate_of(lr)
    targets = jax.tree.map(jnp.asarray, array_of(y, "y", finite=False) if _is_numbers(y) else y)

    def curve(t: Any, f0_train: Any = None, kst: Any = None, f0_test: Any = 0.0) -> tuple[Array, Any]:
        time = at_least_zero(t, "t", what="a finite time of at least 0: under most losses nothing is reached at ∞")
        p = problem_of(ktt, _like(targets, f0_train))  # the outputs' shape; their values are not the targets
        start = p.start(0.0 if f0_train is None else f0_train, len(p.kernel), "f0_train")

        def slope(a: Array, eta: Array) -> Array:
            value = lambda f: _number(loss(p.outputs(f), targets))
            with jax.default_matmul_precision("highest"):
                return eta * jax.grad(value)(start - p.kernel @ a)

        coefficients = _solve(
            slope, jnp.zeros_like(start), jnp.asarray(rate, start.dtype), jnp.asarray(time, start.dtype),
            rtol, atol, max_steps, solver,
        )  # fmt: skip
        with jax.default_matmul_precision("highest"):
            train = p.outputs(start - p.kernel @ coefficients)
            if kst is None:
                no_start(f0_test)
                return train, None
            cross = p.cross(kst)
            return train, p.outputs(p.start(f0_test, len(cross), "f0_test") - cross @ coefficients)

    return curve


def _is_numbers(y: Any) -> bool:
    """Whether it is a list of numbers, nested or not: one array, no tree of many."""
    return isinstance(y, list) and not any(map(np.ndim, jax.tree.leaves(y)))


def _like(y: Any, f0_train: Any) -> Any:
    """An array of the outputs' shape, to check the kernel by."""
    if f0_train is not None and jnp.ndim(f0_train):
        return f0_train
    if isinstance(y, jax.Array) and jnp.issubdtype(y.dtype, jnp.floating):
        return y
    held = "is left out" if f0_train is None else "is one number"
    raise bad_argument("f0_train", f"{held}, and y does not say how many outputs there are", "give zeros (N, k), say")


def _number(value: Any) -> Array:
    if jnp.ndim(value) or not jnp.issubdtype(jnp.asarray(value).dtype, jnp.floating):
        raise bad_argument(
            "loss", f"returns {jnp.asarray(value).dtype} of shape {jnp.shape(value)}", "sum it to a number"
        )
    return jnp.asarray(value)


def _solve(
    slope: Any, start: Array, rate: Array, time: Array, rtol: float, atol: float, max_steps: int, solver: Any
) -> Array:
    """a at the times (*T,): (*T, M, c)."""
    try:
        import diffrax
    except ImportError:
        raise ProgramError("flow: an ODE is solved with diffrax: pip install 'tensorprog[ode]'") from None
    times, order = jnp.sort(time.reshape(-1)), jnp.argsort(time.reshape(-1))
    found = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda _, a, eta: slope(a, eta)),
        diffrax.Tsit5() if solver is None else solver,
        t0=jnp.zeros_like(times[0]),
        t1=times[-1],
        dt0=None,
        y0=start,
        args=rate,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps,
        throw=False,
    )
    assert found.ys is not None, "SaveAt(ts=...) saves"
    values = found.ys[jnp.argsort(order)]
    failed = found.result != diffrax.RESULTS.successful
    if is_concrete(values):
        if bool(np.asarray(failed)):
            raise bad_argument(
                "t", f"the solver does not come to {float(times[-1]):g} in {max_steps} steps: the equation is stiff",
                "give a smaller t, solver=diffrax.Kvaerno5(), or more max_steps",
            )  # fmt: skip
    else:
        values = jnp.where(failed, jnp.nan, values)
    return values.reshape(*time.shape, *start.shape)
