"""Functions with derivative rules of their own (`jax.custom_jvp`), kept whole with their rule."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tensorprog.functions.jaxprs import CALLS, ClosedJaxpr, Literal, closed, inner, plain
from tensorprog.importing.context import Context
from tensorprog.importing.elementwise import ELEMENTWISE, elementwise
from tensorprog.importing.fused import Argument, Constant, Fused, Node, Ruled, Step, frozen
from tensorprog.importing.parameters import Parameters
from tensorprog.importing.values import Value

RULED = {"relu": jax.nn.relu, "relu6": jax.nn.relu6, "silu": jax.nn.silu}
"""Functions of jax.nn that JAX gives a rule, by name: the listing has them as they are."""

_PLACED = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims"}


class NotElementwise(Exception):
    """A rule that does more than elementwise functions of its arguments."""


def ruled(
    context: Context, parameters: Parameters, jaxpr: Any, equation: Any, values: Sequence[Value], shape: Sequence[int]
) -> Value:
    """The call as one elementwise function."""
    name = _name(equation)
    try:
        fn = _known(name, equation) or _ruled(jaxpr, equation)
    except NotElementwise as error:
        context.fail(
            f"{name} has a derivative rule of its own, and is not elementwise ({error})",
            "give rules to elementwise functions; write the rest with functions of jax.numpy",
        )  # fmt: skip
    return elementwise(context, parameters, fn, name, {}, values, shape, name)


def _name(equation: Any) -> str:
    """The name of the function that has a rule: that of the one call inside, if there is one."""
    names = [e.params.get("name") for e in closed(equation.params["call_jaxpr"]).jaxpr.eqns]
    return next((n for n in names if isinstance(n, str)), "function")


def _known(name: str, equation: Any) -> Any:
    """A function of jax.nn, when JAX traces it to this very body."""
    fn = RULED.get(name)
    if fn is None or len(equation.invars) != 1:
        return None
    aval = equation.invars[0].aval
    with jax.enable_x64(True):
        own = jax.make_jaxpr(fn)(jax.ShapeDtypeStruct(aval.shape, aval.dtype))
    bodies = [e for e in own.jaxpr.eqns if e.primitive.name == "custom_jvp_call"]
    alike = len(bodies) == 1 and str(bodies[0].params["call_jaxpr"]) == str(equation.params["call_jaxpr"])
    return fn if alike else None


def _ruled(jaxpr: Any, equation: Any) -> Ruled:
    """Value and slopes as functions of coordinates."""
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]

    def call(*values: Any) -> Any:
        own = [a.val if isinstance(a, Literal) else v for a, v in zip(equation.invars, values, strict=True)]
        return plain(jaxpr, equation, own)[0]

    def slope(k: int, *values: Any) -> Any:
        tangents = tuple(jnp.ones_like(v) if i == k else jnp.zeros_like(v) for i, v in enumerate(values))
        return jax.jvp(call, values, tangents)[1]

    with jax.enable_x64(True):
        value = coordinatewise(closed(equation.params["call_jaxpr"]))
        slopes = [coordinatewise(jax.make_jaxpr(partial(slope, k))(*avals)) for k in range(len(avals))]
    return Ruled(value, tuple(slopes))


def coordinatewise(body: ClosedJaxpr) -> Fused:
    """A jaxpr of arrays of one shape as the function of one coordinate that it applies to each.

    **Raises:** `NotElementwise` where it does anything else.
    """
    (root,) = _nodes(body, [Argument(k) for k in range(len(body.jaxpr.invars))])
    return Fused(root)


def _nodes(body: ClosedJaxpr, given: Sequence[Node]) -> list[Node]:
    jaxpr = body.jaxpr
    known: dict[Any, Node] = dict(zip(jaxpr.invars, given, strict=True))
    for variable, value in zip(jaxpr.constvars, body.consts, strict=True):
        if jnp.size(value) != 1:
            raise NotElementwise("it holds an array")
        known[variable] = Constant.of(jnp.reshape(value, ()))
    read = lambda atom: Constant.of(atom.val) if isinstance(atom, Literal) else known[atom]
    for equation in jaxpr.eqns:
        name, own = equation.primitive.name, [read(a) for a in equation.invars]
        bodies = list(inner(equation))
        if (name in CALLS or name in ("custom_jvp_call", "custom_vjp_call")) and bodies:
            known |= dict(zip(equation.outvars, _nodes(bodies[0], own), strict=True))
            continue
        if name in _PLACED:
            known[equation.outvars[0]] = own[0]
            continue
        params = frozen(equation.params)
        if name not in ELEMENTWISE or params is None:
            raise NotElementwise(name)
        known[equation.outvars[0]] = Step(equation.primitive, params, tuple(own))
    return [read(atom) for atom in jaxpr.outvars]
