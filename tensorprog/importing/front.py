"""`from_jax`, `from_flax`, `from_equinox`: a model of the user's own as a program."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from tensorprog.errors import Line, bad_argument, warn
from tensorprog.importing.agreement import check_agreement
from tensorprog.importing.laws import laws, shared_keys
from tensorprog.importing.lowering import lowered, overridden
from tensorprog.importing.models import Build, traced
from tensorprog.ir import Data, Input
from tensorprog.program import Program


def from_jax(
    build: Build,
    *inputs: Input | Data,
    widths: Sequence[int] | None = None,
    variances: Mapping[str, float] | None = None,
    check: bool = True,
) -> Program:
    """The program of a plain JAX function, f(params, x) with build(width, key) -> (f, params).

    The function is traced at three widths (97, 101 and 103, or multiples of them that its heads divide, or `widths`):
    what changes with the width is one, and every value carries its power of the width. `inputs` are shapes of one
    example, as `trace` takes them; f reads batches. Initial variances are those of the initialisers, exactly, or
    `variances` {name: σ²}, entries then being independent, of variance σ²·n^p as drawn. With `check` the program
    at one width is held against the function.

    Laws that are not normal are taken as the Gaussian of equal variance; where the fan is fixed, so that no central
    limit theorem makes them equal, a `KernelWarning` names the parameter.

    **Raises:** `ProgramError` at the user's line for what has no limit or no rule, with what to write instead.

    ```python
    >>> import jax, jax.numpy as jnp, tensorprog as tp
    >>> def build(n, key):
    ...     k = jax.random.split(key)
    ...     p = {"U": jax.random.normal(k[0], (n, 5)), "v": jax.random.normal(k[1], (n,))}
    ...     return lambda p, x: jnp.tanh(x @ p["U"].T / 5**0.5) @ p["v"] / n**0.5, p
    >>> program = tp.from_jax(build, tp.Input(5))

    ```
    """
    return imported(build, inputs, widths, variances, check, getattr(build, "__name__", "net"), begins(build))


def imported(
    build: Build, inputs: Sequence[Input | Data], widths: Sequence[int] | None,
    variances: Mapping[str, float] | None, check: bool, name: str, line: Line | None,
) -> Program:  # fmt: skip
    """The program of a build, under a name."""
    model = traced(build, inputs, widths)
    found = overridden(model, laws(model.widths, model.draws), variances)
    shared = shared_keys(model.draws[0])
    if shared is not None:
        one, other = (model.names[k] for k in shared)
        if one not in (variances or {}) and other not in (variances or {}):
            raise bad_argument(
                "build", f"{one} and {other} are drawn from one random key, so they are not independent",
                "split the key, one for each array: k = jax.random.split(key, 2)",
            )  # fmt: skip
    name = name if name.isidentifier() else "net"
    made = lowered(model, found, inputs, name, line)
    if check:
        check_agreement(model, made, inputs)
    for remark in made.remarks:
        warn(remark)
    return made.program


def is_model(fn: Any) -> bool:
    """Whether a function makes a model: it asks for a `width` (or `n`), and for nothing else but a `key`."""
    names = [p.name for p in inspect.signature(fn).parameters.values() if p.default is p.empty]
    return names[:1] in (["width"], ["n"]) and names[1:] in ([], ["key"])


def from_model(fn: Callable[..., Any], *inputs: Input | Data) -> Program:
    """The program of whatever makes a model: build(width, key) -> (f, params), or makers of modules."""
    if "key" not in inspect.signature(fn).parameters:
        return from_flax(fn, *inputs)
    if isinstance(fn(6 * 64, jax.random.key(0)), tuple):
        return from_jax(fn, *inputs)
    return from_equinox(fn, *inputs)


def begins(fn: Any) -> Line | None:
    """Where a function, or the call of a class, begins."""
    code = getattr(fn, "__code__", None) or getattr(getattr(fn, "__call__", None), "__code__", None)  # noqa: B004
    return None if code is None else Line(code.co_filename, code.co_firstlineno)


def from_flax(
    make: Callable[[int], Any],
    *inputs: Input | Data,
    widths: Sequence[int] | None = None,
    variances: Mapping[str, float] | None = None,
    check: bool = True,
) -> Program:
    """The program of a Flax model, make(width) -> a linen or an nnx module; all else as in `from_jax`.

    Parameters are linen's collection "params", nnx's `nnx.Param`; other collections (batch statistics) are numbers.

    **Raises:** `ProgramError` as `from_jax`, and for what is no module.
    """
    build, name = flax_build(make, inputs)
    return imported(build, inputs, widths, variances, check, name, begins(make))


def flax_build(make: Callable[[int], Any], inputs: Sequence[Input | Data]) -> tuple[Build, str]:
    """build(width, key) -> (f, params) of a function that makes Flax modules, and a name."""
    import flax.linen as linen
    from flax import nnx

    first = make(6 * 64)
    if isinstance(first, linen.Module):
        return _linen(make, inputs), type(first).__name__
    if isinstance(first, nnx.Module):
        return _nnx(make), type(first).__name__
    raise bad_argument("make", f"make(width) returns {type(first).__name__}", "return a linen or an nnx module")


def _linen(make: Callable[[int], Any], inputs: Sequence[Input | Data]) -> Build:
    def build(width: int, key: Any) -> tuple[Callable[[Any, Any], Any], Any]:
        module = make(width)
        x = [jax.numpy.ones((1, *i.shape), int if isinstance(i, Data) else float) for i in inputs]
        variables = dict(jax.jit(module.init)(key, *x))  # op by op it takes a minute
        params = variables.pop("params")

        def f(params: Any, x: Any) -> Any:
            return module.apply({"params": params, **variables}, *(x if isinstance(x, tuple) else (x,)))

        return f, params

    return build


def _nnx(make: Callable[[int], Any]) -> Build:
    from flax import nnx

    def build(width: int, key: Any) -> tuple[Callable[[Any, Any], Any], Any]:
        graph, params, rest = nnx.split(make(width), nnx.Param, ...)

        def f(params: Any, x: Any) -> Any:
            model = nnx.merge(graph, params, rest, copy=True)
            return model(*(x if isinstance(x, tuple) else (x,)))

        return f, params

    return build


def from_equinox(
    make: Callable[[int, Any], Any],
    *inputs: Input | Data,
    widths: Sequence[int] | None = None,
    variances: Mapping[str, float] | None = None,
    check: bool = True,
) -> Program:
    """The program of an Equinox model, make(width, key) -> a module, called with one example; all else as `from_jax`.

    **Raises:** `ProgramError` as `from_jax`, and for what is no module.
    """
    build, name = equinox_build(make)
    return imported(build, inputs, widths, variances, check, name, begins(make))


def equinox_build(make: Callable[[int, Any], Any]) -> tuple[Build, str]:
    """build(width, key) -> (f, params) of a function that makes Equinox modules, and a name."""
    import equinox as eqx

    names: list[str] = []

    def build(width: int, key: Any) -> tuple[Callable[[Any, Any], Any], Any]:
        module = make(width, key)
        if not callable(module):
            raise bad_argument("make", f"make(width, key) returns {type(module).__name__}", "return a module")
        params, static = eqx.partition(module, eqx.is_inexact_array)
        names.append(type(module).__name__)

        def f(params: Any, x: Any) -> Any:
            one = lambda *x: eqx.combine(params, static)(*x)
            return jax.vmap(one)(*(x if isinstance(x, tuple) else (x,)))

        return f, params

    return build, getattr(make, "__name__", "net")
