"""Training under squared loss in closed form: gradient flow, steps with momentum, the largest stable rate, ensembles.

Everywhere the loss is ½ Σ ‖f(x_i) − y_i‖², a sum. For a mean over N examples (and k outputs) give `lr/N` (`lr/(N k)`),
and multiply `max_learning_rate` by N (N k); a loss without the ½ doubles the rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tensorprog.errors import bad_argument, warn
from tensorprog.predict.arguments import (
    Problem,
    momentum_of,
    no_start,
    problem,
    rate_of,
    ridge_of,
    square,
    time_of,
    whole,
)
from tensorprog.predict.regression import Posterior
from tensorprog.predict.solving import Filter, Spectrum, filtered, spectrum, warn_condition
from tensorprog.predict.spectra import bits_of, flow_decay, flow_gain, steps_decay, steps_gain
from tensorprog.program import is_concrete

Array = jax.Array
Curve = Callable[..., tuple[Array, Any]]
"""g(t, f0_train=0, kst=None, f0_test=0) -> (train, test)."""


def gradient_flow(ktt: Any, y: Any, lr: Any = 1.0, *, ridge: Any = 0.0) -> Curve:
    """Gradient flow under squared loss, in closed form.

    θ̇ = −η ∇_θ ½ Σ_i ‖f(x_i) − y_i‖²:   f_t − y = e^{−ηtΘ}(f_0 − y) on the training inputs,
    f_t(x) = f_0(x) − Θ(x, X) Θ⁻¹(1 − e^{−ηtΘ})(f_0(X) − y) elsewhere

    for a network whose kernel stays Θ: infinitely wide, or linearised (`tp.linearize`) with its own empirical NTK.

    **Arguments:**

    - `ktt`: Θ of the training inputs, (N, N), or (N, N, *S, *S).
    - `y`: targets (N,) or (N, k), (N, *S).
    - `lr`: η. The loss is the sum with ½; for a mean over M numbers give η/M.
    - `ridge`: r of (r/2)‖θ − θ_0‖², added to the loss.

    **Returns:** g(t, f0_train=0.0, kst=None, f0_test=0.0) -> (train, test). `t` a time, an array of times (a leading
    axis of the results), or `inf`; `f0_train` (N, *k) and `f0_test` (N*, *k) outputs before training, or a number;
    `kst` (N*, N, …), test with training inputs; test is None without it. One eigendecomposition serves all calls.

    **Raises:** `ProgramError` for shapes that do not fit, NaN, negative times, rates or ridge. A kernel that is close
    to singular is told in a `KernelWarning`: directions that are rounding do not move.

    Source: Lee et al. 2019 (1902.06720), eqs. 8-9.

    ```python
    >>> import jax.numpy as jnp, tensorprog as tp
    >>> g = tp.predict.gradient_flow(jnp.diag(jnp.array([1.0, 2.0])), jnp.ones(2), lr=1.0)
    >>> train, _ = g(jnp.log(2.0))                      # 1 − e^{−t λ}
    >>> [round(float(f), 4) for f in train]
    [0.5, 0.75]

    ```
    """
    p = problem(ktt, y)
    found = _spectrum(p, ridge)
    rate, pull = rate_of(lr), ridge_of(ridge)

    def curve(t: Any, f0_train: Any = 0.0, kst: Any = None, f0_test: Any = 0.0) -> tuple[Array, Any]:
        time = time_of(t)
        numbers = _cast(found, time, rate, pull)
        return _outputs(p, found, flow_decay, flow_gain, numbers, f0_train, kst, f0_test)

    return curve


def gradient_descent(
    ktt: Any, y: Any, lr: Any = 1.0, *, momentum: Any = 0.0, nesterov: bool = False, ridge: Any = 0.0
) -> Curve:
    """Full-batch gradient descent under squared loss, step by step but in closed form.

    f_n − y = p_n(ηΘ)(f_0 − y), with p_n(z) = (1 − z)ⁿ for plain steps. With momentum β, as optax's `sgd(η, β)`,
    m ← βm + ∇, θ ← θ − ηm, p_n is a polynomial of degree n from a power of a 2 × 2 matrix; with `nesterov`,
    θ ← θ − η(βm + ∇).

    Arguments and errors as for `gradient_flow`. A rate above `max_learning_rate` diverges, and says so in a
    `KernelWarning`.

    **Returns:** g(steps, f0_train=0.0, kst=None, f0_test=0.0) -> (train, test), `steps` an int or an array of ints,
    below 2³¹.

    ```python
    >>> import jax.numpy as jnp, tensorprog as tp
    >>> g = tp.predict.gradient_descent(jnp.eye(2), jnp.ones(2), lr=0.5)
    >>> train, _ = g(jnp.array([0, 1, 2]))
    >>> train[:, 0].tolist()
    [0.0, 0.5, 0.75]

    ```
    """
    p = problem(ktt, y)
    found = _spectrum(p, ridge)
    rate, pull, beta = rate_of(lr), ridge_of(ridge), momentum_of(momentum)
    largest = _stable(found.values[-1] + pull.astype(found.values.dtype), beta, nesterov)
    if is_concrete(largest) and is_concrete(rate) and float(rate) > float(largest):
        told = f"lr={float(rate):g} diverges: the largest stable learning rate is {float(largest):.4g}"
        warn(f"{told} (tp.predict.max_learning_rate)")

    def curve(steps: Any, f0_train: Any = 0.0, kst: Any = None, f0_test: Any = 0.0) -> tuple[Array, Any]:
        bits = bits_of(whole(steps))
        numbers = _cast(found, bits, rate, beta, 1.0 if nesterov else 0.0, pull)
        return _outputs(p, found, steps_decay, steps_gain, numbers, f0_train, kst, f0_test)

    return curve


def max_learning_rate(ktt: Any, *, momentum: Any = 0.0, nesterov: bool = False) -> Array:
    """The largest learning rate with which gradient descent does not diverge.

    2/λ_max for plain steps, 2(1 + β)/λ_max with momentum β, 2(1 + β)/((1 + 2β)λ_max) with Nesterov's

    for the loss ½ Σ ‖f − y‖², a sum over the N examples of `ktt` and their outputs. For a mean over M numbers, ½
    included, multiply by M; for a mean of squares without the ½, by M/2. `ktt` as for `gradient_flow`.

    The steps of a direction of eigenvalue λ have the characteristic polynomial z² − (1 + β − ηλ)z + β, or
    z² − (1 + β)(1 − ηλ)z + β(1 − ηλ) with Nesterov's momentum; a root leaves the unit disc at z = −1.
    """
    kernel, _ = square(ktt)
    return _stable(jnp.linalg.eigvalsh(kernel)[-1], momentum_of(momentum), nesterov)


def _stable(largest: Array, momentum: Array, nesterov: bool) -> Array:
    momentum = momentum.astype(largest.dtype)
    return 2 * (1 + momentum) / ((1 + 2 * momentum) if nesterov else 1.0) / largest


def ensemble(ktt: Any, kst: Any, kss: Any, y: Any, t: Any = math.inf, *, lr: Any = 1.0, ridge: Any = 0.0) -> Posterior:
    """Mean and covariance over initialisations of infinitely wide networks, each trained for a time t.

    With Θ the NTK, K the NNGP kernel and A = Θ_* Θ⁻¹(1 − e^{−ηtΘ}):
    mean = A y,   cov = K_** − A K_*ᵀ − K_* Aᵀ + A K Aᵀ

    All networks are trained by gradient flow on ½ Σ ‖f − y‖², all their parameters at once. At t = 0 this is the prior,
    mean 0 and covariance K_**. At t = ∞ it is not the NNGP's posterior; `last_layer` comes to that.

    **Arguments:**

    - `ktt`, `kst`: both kernels of the training inputs, and of test with training inputs, as `tp.kernels` returns them
      (`.nngp` and `.ntk`); `kss`: of the test inputs, or the NNGP kernel alone. Pass ktt twice more for the training
      inputs themselves.
    - `y`, `lr`, `ridge`: as for `gradient_flow`. `t`: a time, an array of times (a leading axis), or ∞.

    **Returns:** `Posterior`: `.mean`, `.cov`, `.std` of outputs f, not of noisy targets.

    **Raises:** `ProgramError` as `gradient_flow`, and where a kernel is missing.

    Source: Lee et al. 2019 (1902.06720), eqs. 14-15.
    """
    for name, blocks in (("ktt", ktt), ("kst", kst)):
        if not (hasattr(blocks, "ntk") and hasattr(blocks, "nngp")):
            raise bad_argument(
                name, "is one kernel, and an ensemble needs the NTK and the NNGP", "give tp.kernels(program, …)"
            )
    inner = kss.nngp if hasattr(kss, "nngp") else kss
    return _ensemble((ktt.ntk, kst.ntk), (ktt.nngp, kst.nngp, inner), y, t, lr, ridge)


def last_layer(
    ktt: Any, kst: Any, kss: Any, y: Any, t: Any = math.inf, *, lr: Any = 1.0, ridge: Any = 0.0
) -> Posterior:
    """The ensemble of networks of which only the readout is trained: the NNGP kernel is then the NTK too.

    mean = A y,   cov = K_** − A K_*ᵀ − K_* Aᵀ + A K Aᵀ,   A = K_* K⁻¹(1 − e^{−ηtK})

    At t = ∞ and ridge 0 this is the NNGP's posterior. `ktt`, `kst`, `kss`: NNGP kernels, or what `tp.kernels` returns;
    everything else as for `ensemble`. (A ridge pulls networks to where they started: the covariance is then not that of
    a posterior with noise.)

    Source: Lee et al. 2019 (1902.06720), §2.3.1 (eqs. 11-13).
    """
    blocks = tuple(k.nngp if hasattr(k, "nngp") else k for k in (ktt, kst, kss))
    return _ensemble(blocks[:2], blocks, y, t, lr, ridge)


def _ensemble(trained: Any, prior: Any, y: Any, t: Any, lr: Any, ridge: Any) -> Posterior:
    p = problem(trained[0], y)
    cross = p.cross(trained[1])
    first = problem(prior[0], y)
    prior_cross, prior_test = first.cross(prior[1]), first.test(prior[2], cross)
    found = _spectrum(p, ridge)
    time = time_of(t)
    numbers = (*_cast(found, time, rate_of(lr), ridge_of(ridge)), found.cutoff)
    mean, cov = _law(found, cross, first.kernel, prior_cross, prior_test, p.targets, numbers)
    return Posterior(p.outputs(mean), *p.spread(cov), 0.0, _condition(found, ridge))


@jax.jit
def _law(
    found: Spectrum, cross: Array, prior: Array, prior_cross: Array, prior_test: Array, targets: Array, numbers: Any
) -> tuple[Array, Array]:
    """A y and K_** − A K_*ᵀ − K_* Aᵀ + A K Aᵀ, a leading axis for each time."""
    turn = lambda matrix: jnp.swapaxes(matrix, -1, -2)
    with jax.default_matmul_precision("highest"):
        weights = turn(filtered(flow_gain, found, cross.T, numbers))  # A, (*T, M*, M)
        mixed = weights @ prior_cross.T
        cov = prior_test - mixed - turn(mixed) + weights @ prior @ turn(weights)
        return weights @ targets, (cov + turn(cov)) / 2


# ------------------------------------------------------------------------------------------------------ the rest


def _spectrum(p: Problem, ridge: Any) -> Spectrum:
    """The eigendecomposition, and a warning where the fixed point of training is not well determined."""
    found = spectrum(p.kernel)
    condition = _condition(found, ridge)
    if condition is not None:
        warn_condition("ktt", condition, p.kernel.dtype)
    return found


def _condition(found: Spectrum, ridge: Any) -> float | None:
    pull = ridge_of(ridge)
    if not (is_concrete(found.values) and is_concrete(pull)):
        return None
    least, most = float(found.values[0]) + float(pull), float(found.values[-1]) + float(pull)
    return most / least if least > 0 else math.inf


def _cast(found: Spectrum, *numbers: Any) -> tuple[Array, ...]:
    return tuple(jnp.asarray(number, found.values.dtype) for number in numbers)


def _outputs(
    p: Problem,
    found: Spectrum,
    decay: Any,
    gain: Any,
    numbers: tuple[Array, ...],
    f0_train: Any,
    kst: Any,
    f0_test: Any,
) -> tuple[Array, Any]:
    numbers = (*numbers, found.cutoff)
    start = p.start(f0_train, len(p.kernel), "f0_train")
    if kst is None:
        no_start(f0_test)
        return p.outputs(_at_train(decay, found, p.targets, start, numbers)), None
    cross = p.cross(kst)
    f0 = p.start(f0_test, len(cross), "f0_test")
    return (
        p.outputs(_at_train(decay, found, p.targets, start, numbers)),
        p.outputs(_at_test(gain, found, p.targets, start, cross, f0, numbers)),
    )


@partial(jax.jit, static_argnums=0)
def _at_train(decay: Filter, found: Spectrum, targets: Array, start: Array, numbers: Any) -> Array:
    return targets + filtered(decay, found, start - targets, numbers)


@partial(jax.jit, static_argnums=0)
def _at_test(
    gain: Filter, found: Spectrum, targets: Array, start: Array, cross: Array, f0: Array, numbers: Any
) -> Array:
    with jax.default_matmul_precision("highest"):
        return f0 - cross @ filtered(gain, found, start - targets, numbers)
