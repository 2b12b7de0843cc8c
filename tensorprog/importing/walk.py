"""The walk over a model's jaxprs, equation by equation at three widths, and which rule lowers which primitive."""

from __future__ import annotations

import linecache
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.errors import Line
from tensorprog.functions.jaxprs import CALLS, ClosedJaxpr, Literal, closed, inner, plain
from tensorprog.importing.context import Context
from tensorprog.importing.elementwise import ELEMENTWISE
from tensorprog.importing.parameters import Parameters
from tensorprog.importing.sizes import Sizes
from tensorprog.importing.steps import RULES, Reading, concatenated, expanded, sliced, without
from tensorprog.importing.values import Known, Value, Vec
from tensorprog.tracing.builder import is_machinery

BODIES = {*CALLS, "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin"}
RANDOM = {"random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform", "random_gamma"}


# ---- whose line it is


def frames(equation: Any) -> list[Any]:
    """The Python frames that an equation was traced in, innermost first."""
    traceback = getattr(getattr(equation, "source_info", None), "traceback", None)
    return list(getattr(traceback, "frames", ()))


def line_of(equation: Any, within: Line | None) -> Line | None:
    """The user's line of an equation; `within` is that of the call that it is part of.

    A function that JAX keeps traced has the lines of its first call: these count only below the call that it is in.
    """
    found: Line | None = None
    for frame in frames(equation):
        file = frame.file_name
        if is_machinery(file) or _installed(file):
            continue
        line = Line(file, frame.line_num)
        found = found or line
        if within is None or line == within:
            return found
    return within or found


def _installed(file: str) -> bool:
    return "site-packages" in file or "dist-packages" in file or "/tensorprog/importing/" in file


def label_of(equation: Any) -> str | None:
    """The function of jax.nn that an equation is part of."""
    for frame in frames(equation):
        if frame.file_name.endswith("jax/_src/nn/functions.py") and not frame.function_name.startswith("<"):
            return frame.function_name.rpartition(".")[2].lstrip("_")
    return None


def source(line: Line | None) -> str:
    """What stands on a line."""
    return linecache.getline(line.file, line.number).strip() if line is not None else ""


# ---- the walk


class Walk:
    """One reading of a model's jaxprs."""

    def __init__(self, context: Context, parameters: Parameters):
        self.context, self.parameters = context, parameters

    def run(self, bodies: Sequence[ClosedJaxpr], given: Sequence[Value], within: Line | None) -> list[Value]:
        """The values of a jaxpr's outputs; what no output needs is left out."""
        one = bodies[0].jaxpr
        if any(len(b.jaxpr.eqns) != len(one.eqns) for b in bodies):
            self.context.fail("the function is another one at another width", "write one function for every width")
        known: dict[Any, Value] = {}
        for variables in zip(*(b.jaxpr.constvars for b in bodies), strict=True):
            known[variables[0]] = Known(
                tuple(b.consts[b.jaxpr.constvars.index(v)] for b, v in zip(bodies, variables, strict=True))
            )
        known |= dict(zip(one.invars, given, strict=True))

        def read(atoms: Sequence[Any]) -> Value:
            return Known(tuple(a.val for a in atoms)) if isinstance(atoms[0], Literal) else known[atoms[0]]

        live = _live(one)
        for equations in zip(*(b.jaxpr.eqns for b in bodies), strict=True):
            if id(equations[0]) not in live:
                continue
            if any(e.primitive is not equations[0].primitive for e in equations):
                self.context.fail("the function is another one at another width", "write one function for every width")
            values = [read(atoms) for atoms in zip(*(e.invars for e in equations), strict=True)]
            results = self.step([b.jaxpr for b in bodies], equations, values, within)
            known |= dict(zip(equations[0].outvars, results, strict=True))
        return [read(atoms) for atoms in zip(*(b.jaxpr.outvars for b in bodies), strict=True)]

    def step(
        self, jaxprs: Sequence[Any], equations: Sequence[Any], values: list[Value], within: Line | None
    ) -> list[Value]:
        """One equation."""
        equation = equations[0]
        name = equation.primitive.name
        line = line_of(equation, within)
        self.context.at(line, f"{source(line) or 'the function'} ({name})")
        if name in BODIES:
            bodies = [next(inner(e)) for e in equations]
            return self.run(bodies, values, line)
        if name in RANDOM:
            self.context.fail(
                "random numbers are drawn in the function", "leave dropout and noise out: deterministic=True in Flax, "
                "inference=True in Equinox; what is drawn once for all inputs is a parameter",
            )  # fmt: skip
        if name == "custom_jvp_call" and all(isinstance(v, Known) for v in values):
            return self.run([closed(e.params["call_jaxpr"]) for e in equations], values, line)
        if name == "scan":
            return self.scan(equations, values, line)
        if name == "cond":
            return self.cond(equations, values, line)
        if all(isinstance(v, Known) for v in values):
            return _evaluated(jaxprs, equations, values)
        before = [tuple(a.aval.shape for a in atoms) for atoms in zip(*(e.invars for e in equations), strict=True)]
        sizes = [tuple(zip(*shapes, strict=True)) for shapes in before]
        after = tuple(zip(*(e.outvars[0].aval.shape for e in equations), strict=True))
        step = Reading(self.context, self.parameters, equations, sizes, after, label_of(equation), jaxprs[0])
        if name in ELEMENTWISE:
            return [step.elementwise(values)]
        rule = RULES.get(name)
        if rule is None:
            self.context.fail(
                f"there is no rule for the primitive {name}"
                + (" over the width" if any(isinstance(v, Vec) for v in values) else ""),
                "write it with products, elementwise functions, averages over the width, and operations on sites",
            )  # fmt: skip
        found = rule(step, values)
        return found if isinstance(found, list) else [found]

    def scan(self, equations: Sequence[Any], values: list[Value], line: Line | None) -> list[Value]:
        """A loop of known length, unrolled."""
        params = equations[0].params
        consts, carry = params["num_consts"], params["num_carry"]
        bodies = [e.params["jaxpr"] for e in equations]
        fixed, state, xs = values[:consts], values[consts : consts + carry], values[consts + carry :]
        rows: list[list[Value]] = []
        times = range(params["length"])
        shapes = [tuple(zip(*(e.invars[consts + carry + k].aval.shape for e in equations))) for k in range(len(xs))]
        for t in reversed(times) if params["reverse"] else times:
            own = [self.row(x, t, shapes[k]) for k, x in enumerate(xs)]
            out = self.run(bodies, [*fixed, *state, *own], line)
            state = out[:carry]
            rows.append(out[carry:])
        if params["reverse"]:
            rows.reverse()
        outs = [tuple(zip(*(e.outvars[carry + k].aval.shape for e in equations))) for k in range(len(rows[0]))]
        live = [not _dropped(v) for v in equations[0].outvars[carry:]]
        stacks = [self.stack([row[k] for row in rows], outs[k]) if live[k] else Known(()) for k in range(len(outs))]
        return [*state, *stacks]

    def row(self, x: Value, t: int, sizes: Sequence[Sizes]) -> Value:
        """x[t]."""
        if isinstance(x, Known):
            return Known(tuple(np.asarray(a)[t] for a in x.arrays))
        cut = sliced(self.context, self.parameters, x, [slice(t, t + 1), *[slice(None)] * (len(sizes) - 1)])
        return without(self.context, cut, (0,))

    def stack(self, rows: list[Value], sizes: Sequence[Sizes]) -> Value:
        """The values of all steps as one array."""
        numbers = [r.arrays for r in rows if isinstance(r, Known)]
        if len(numbers) == len(rows):
            return Known(tuple(np.stack(a) for a in zip(*numbers, strict=True)))
        grown = [expanded(self.context, r) for r in rows]
        shape = [((1,) * len(self.context.trials), *sizes[1:]) for _ in rows]
        return concatenated(self.context, self.parameters, grown, shape, 0)

    def cond(self, equations: Sequence[Any], values: list[Value], line: Line | None) -> list[Value]:
        """A choice by a known number."""
        if not isinstance(values[0], Known):
            self.context.fail("a choice that depends on data or parameters", "write jnp.where(test, a, b)")
        index = int(np.asarray(values[0].arrays[0]))
        return self.run([e.params["branches"][index] for e in equations], values[1:], line)


def _dropped(variable: Any) -> bool:
    return type(variable).__name__ == "DropVar"


def _live(jaxpr: Any) -> set[int]:
    """The equations that the outputs need."""
    needed = {id(v) for v in jaxpr.outvars if not isinstance(v, Literal)}
    found: set[int] = set()
    for equation in reversed(jaxpr.eqns):
        if any(id(v) in needed for v in equation.outvars):
            found.add(id(equation))
            needed |= {id(v) for v in equation.invars if not isinstance(v, Literal)}
    return found


def _evaluated(jaxprs: Sequence[Any], equations: Sequence[Any], values: Sequence[Any]) -> list[Value]:
    """An equation of numbers alone, at each width."""
    with jax.enable_x64(True):
        outs = [
            plain(jaxpr, e, [np.asarray(v.arrays[k]) if not _is_key(v.arrays[k]) else v.arrays[k] for v in values])
            for k, (jaxpr, e) in enumerate(zip(jaxprs, equations, strict=True))
        ]
    return [Known(tuple(o if _is_key(o) else np.asarray(o) for o in each)) for each in zip(*outs, strict=True)]


def _is_key(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
