"""A network of the user's own beside a program: its kernels, and whether the two are the same network at one width."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog import empirical
from tensorprog.comparison.arguments import as_given
from tensorprog.comparison.matching import LAYOUTS, Expected, Match, expected, matched, named_leaves
from tensorprog.empirical.arguments import warn_of_batches
from tensorprog.errors import bad_argument
from tensorprog.interpret.finite import apply, init
from tensorprog.interpret.system import parameter_weights
from tensorprog.ir import VectorType
from tensorprog.program import Program

Array = jax.Array
Finite = Callable[[int, Array], tuple[Callable[[Any, Any], Array], Any]]
"""finite(width, key) -> (f, params), f(params, x) -> outputs."""
Draw = Callable[[Array], dict[str, Array]]
"""key -> {"outputs": their second moment, "ntk": …} of one network."""

CHECKED = 256
"""How many networks of each the check draws, on at most `EXAMPLES` examples."""
EXAMPLES = 4
FAR = 4.0
"""From how many standard errors on two means are different."""

TITLES = {"outputs": "the second moment of its outputs", "ntk": "its NTK"}


def model(finite: Finite, program: Program, width: int, x1: Any, x2: Any = None) -> Draw:
    """Kernels of the user's network of one width, averaged over its last output axis where the program has rows."""
    if not callable(finite):
        raise bad_argument("finite", f"{finite!r} is no function", "give finite(width, key) -> (f, params)")
    sites = _sites(program)

    def draw(key: Array) -> dict[str, Array]:
        made = finite(width, key)
        if not (isinstance(made, tuple) and len(made) == 2 and callable(made[0])):
            raise bad_argument(
                "finite", f"finite({width}, key) returns {type(made).__name__}, not (f, params)",
                "return a function f(params, x) -> outputs and its parameters",
            )  # fmt: skip
        f, params = made[0], _cast(made[1], x1[0].dtype)
        y = f(params, as_given(x1))
        expected = (len(x1[0]), *sites)
        if jnp.shape(y)[: len(expected)] != expected or jnp.ndim(y) > len(expected) + 1:
            raise bad_argument(
                "finite", f"f returns shape {jnp.shape(y)}, and the program's outputs are {expected}",
                f"return {expected}, or {(*expected, 'k')} for k independent rows",
            )  # fmt: skip
        axes = -1 if jnp.ndim(y) > len(expected) else ()
        return {
            "outputs": _moment(y, sites),
            "ntk": empirical.ntk(f, params, as_given(x1), as_given(x2), trace_axes=axes),
        }

    return draw


def own_network(program: Program, width: int, convention: str, x: Any) -> Draw:
    """The same of the program's networks, with derivatives in what the convention trains."""
    sites = _sites(program)
    rates = None  # the program's own
    if convention != "multiplier-std":  # with multipliers of 1, θ is what "init-std" trains, also where it is all 0
        parameters = program.structure.parameters
        program = program.replace({f"{p.name}.scale": 1.0 for p in parameters})
        weights = parameter_weights(program, convention, width)
        rates = {p.name: weight for p, weight in zip(parameters, weights, strict=True)}

    def draw(key: Array) -> dict[str, Array]:
        params = _cast(init(program, key, width), x[0].dtype)
        moment = _moment(apply(program, params, x), sites)
        return {"outputs": moment, "ntk": empirical.ntk(program, params, x, lr=rates)}

    return draw


def check_same(finite: Finite, program: Program, width: int, convention: str, x: Any) -> str:
    """That model and program compute the same thing at one width.

    Where the model's arrays can be told to be the program's parameters, by trying, both are the same function; then
    the arrays' means, second moments and correlations over `CHECKED` draws must be the parameters', and neither may
    have one that the other has not. Elsewhere the
    second moment of the outputs and the NTK, means over `CHECKED` networks of each, must agree within `FAR` standard
    errors of their difference.

    **Returns:** what was found, in words. **Raises:** `ProgramError` where they differ.
    """
    for p in program.structure.parameters:
        if (rate := float(program.leaves[p.lr.index])) != 1:
            raise bad_argument(
                "finite", f"the program trains {p.name} with the multiplier {rate:g}, and the model's with 1",
                f"trace the program with lr=1.0, or program.replace({{'{p.name}.lr': 1.0}})",
            )  # fmt: skip
    x = jax.tree.map(lambda a: a[:EXAMPLES], x)
    draw = model(finite, program, width, x)
    jax.eval_shape(draw, jax.random.key(0))  # what is no model of these outputs is told first
    f, params = finite(width, jax.random.key(0))
    ours = expected(program, width, convention)
    params = _cast(params, x[0].dtype)
    warn_of_batches(f, params, as_given(x))
    found = matched(program, ours, f, params, as_given(x))
    if found is None:
        means = _check_means(draw, own_network(program, width, convention, x), width, convention)
        return f"{means}{_strangers(ours, params)}"
    _refuse_strangers(found, program)
    _check_law(finite, ours, found.paths, width)
    return f"finite is the program: the same function at width {width}, with the same means and variances of arrays"


def _refuse_strangers(found: Match, program: Program) -> None:
    """Refuse parameters that one of the two has and the other has not: their terms are in one NTK alone."""
    if found.arrays:
        many = "have no counterpart" if len(found.arrays) > 1 else "has no counterpart"
        raise bad_argument(
            "finite", f"it is the program but for {', '.join(found.arrays)}, which {many} in the program and would be "
            "trained", "add it to the program, a bias of the output as v @ h + tp.bias('c', 1, var=…) of the variance "
            "it starts with (a small one for 0), or leave it out of the model (use_bias=False); an array that is not "
            "trained belongs into the function, not into params",
        )  # fmt: skip
    if found.parameters:
        raise bad_argument(
            "finite", f"it is the program but for {', '.join(found.parameters)}, which has no counterpart in the model",
            f"add it to the model, or leave it out of {program.structure.name}",
        )  # fmt: skip


def _strangers(ours: Sequence[Expected], params: Any) -> str:
    """Words on arrays that have the shape of no parameter: where arrays can't be told, a difference may be too small
    for means of networks."""
    leaves, _ = named_leaves(params)
    fit = lambda leaf: any(one.brought(leaf, layout) is not None for one in ours for layout in LAYOUTS)
    odd = [path for path, leaf in leaves.items() if not fit(leaf)]
    if not odd:
        return ""
    return (
        f"\nno parameter of the program has the shape of {', '.join(odd)}: if one of these has no counterpart, add it "
        "to the program (an output's bias as tp.bias('c', 1)), since means may not tell"
    )


def _check_law(finite: Finite, ours: Sequence[Expected], found: dict[str, str], width: int) -> None:
    """Means, second moments and correlations of the arrays over draws are those of independent parameters.

    Each to `FAR` standard errors of Gaussian entries; correlations are those of arrays of one shape.
    """

    @jax.jit
    def thetas(key: Array) -> dict[str, Array]:
        leaves, _ = named_leaves(finite(width, key)[1])
        return {one.name: one.theta(leaves[found[one.name]]) for one in ours}

    drawn = [thetas(key) for key in jax.random.split(jax.random.key(0x5EED), CHECKED)]
    flat = {one.name: np.stack([np.ravel(d[one.name]).astype(np.float64) for d in drawn]) for one in ours}
    for one in ours:
        theta, count = flat[one.name], flat[one.name].size
        second, path = (theta**2).mean(), found[one.name]
        if abs(second - one.second) > FAR * np.sqrt(2 / count) * one.second + 1e-5:
            ratio = second / one.second if one.second else np.inf
            raise _unlike(path, one, f"its entries' second moment is {ratio:.4g} times that of the program's")
        if abs(theta.mean()) > FAR * np.sqrt(second / count) + 1e-5:
            raise _unlike(path, one, f"its entries have mean {theta.mean() * (one.scale or 1) + one.mean:.4g}")
    for a, b in itertools.combinations(ours, 2):
        left, right = flat[a.name], flat[b.name]
        if left.shape == right.shape and a.second and b.second:
            common = (left * right).mean() / np.sqrt(a.second * b.second)
            if abs(common) > FAR / np.sqrt(left.size):
                raise _unlike(found[a.name], a, f"has correlation {common:.2g} with {found[b.name]}: one random key?")


def _unlike(path: str, one: Expected, why: str) -> Exception:
    return bad_argument(
        "finite", f"{path} is the program's {one.name}, and {why}",
        "initialise it as the program does, or trace the program with the variance that it has",
    )  # fmt: skip


def _check_means(theirs: Draw, ours: Draw, width: int, convention: str) -> str:
    keys = jax.random.split(jax.random.key(0x5EED), 2 * CHECKED)
    pairs = ((theirs, keys[:CHECKED]), (ours, keys[CHECKED:]))
    drawn = [jax.tree.map(np.asarray, jax.lax.map(draw, own)) for draw, own in pairs]
    words = []
    for kind, title in TITLES.items():
        both = [np.asarray(d[kind], np.float64) for d in drawn]
        scale = np.linalg.norm(both[1].mean(0)) or 1.0
        gap = float(np.linalg.norm(both[0].mean(0) - both[1].mean(0)) / scale)
        noise = float(np.sqrt(sum(k.var(0, ddof=1).sum() for k in both) / CHECKED) / scale)
        if not gap <= FAR * noise + 1e-5:
            raise _different(title, both[0].mean(0), both[1].mean(0), width, convention, gap, noise)
        words.append(f"{title.split(' ', 1)[1]} {100 * gap:.1f} % apart (± {100 * noise:.1f} %)")
    return f"finite beside the program's networks at width {width}, means of {CHECKED}: {', '.join(words)}"


def _different(
    title: str, theirs: np.ndarray, ours: np.ndarray, width: int, convention: str, gap: float, noise: float
) -> Exception:
    theirs_trace, own_trace = (float(np.trace(k.reshape(*k.shape[:2], -1)).sum()) for k in (theirs, ours))
    ratio = theirs_trace / own_trace if own_trace else np.inf
    remedy = "compare initial variances, biases and functions with print(program)"
    if title == TITLES["ntk"]:
        remedy += f"; if the model's weights have variance σ²/n, give convention='standard' (now {convention!r})"
    return bad_argument(
        "finite", f"at width {width} {title} is {ratio:.3g} times the program's on the diagonal, and "
        f"{100 * gap:.1f} % apart where chance explains {100 * noise:.1f} % (means of {CHECKED} networks)", remedy,
    )  # fmt: skip


def _sites(program: Program) -> tuple[int, ...]:
    type_ = program.structure.types[program.structure.outputs[0]]
    if not isinstance(type_, VectorType) or type_.space != "output":
        raise bad_argument("finite", "the program's output is no readout", "return v @ h with v = tp.weight('v', 1, n)")
    return type_.sites


def _cast(params: Any, dtype: Any) -> Any:
    leaves, rebuilt = named_leaves(params)
    return rebuilt({path: leaf.astype(dtype) for path, leaf in leaves.items()})


def _moment(y: Array, sites: tuple[int, ...]) -> Array:
    """(N, *S) or (N, *S, k) -> (N, N, *S, *S), the mean over k."""
    flat = y.reshape(len(y), int(np.prod(sites)), -1)
    found = jnp.einsum("isk,jtk->ijst", flat, flat, precision="highest") / flat.shape[-1]
    return found.reshape(len(y), len(y), *sites, *sites)
