"""A traced model becomes a program: read again until its parameters are known for what they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from tensorprog.errors import Line, bad_argument
from tensorprog.importing.context import Again, Context, Demands
from tensorprog.importing.laws import Law
from tensorprog.importing.models import Model
from tensorprog.importing.parameters import Mapped, Parameters
from tensorprog.importing.places import as_vector
from tensorprog.importing.sizes import Power
from tensorprog.importing.values import Axes, Known, Own, Par, Scal, Value, Vec
from tensorprog.importing.walk import Walk
from tensorprog.importing.writing import plain_vector, write_scalar
from tensorprog.ir import Data, Input
from tensorprog.program import Program
from tensorprog.tracing.run import trace
from tensorprog.tracing.values import Vector

READINGS = 64
"""How often a model is read at most: each reading splits an axis of a parameter, or takes in a multiplier."""


@dataclass(frozen=True)
class Lowered:
    """The program, and how its parameters are got from the model's arrays."""

    program: Program
    mapped: dict[str, Mapped]
    axes: tuple[Axes | None, ...]  # of the outputs; None for scalars
    remarks: tuple[str, ...]


def lowered(model: Model, laws: Sequence[Law], inputs: Sequence[Input | Data], name: str, line: Line | None) -> Lowered:
    """The program of a model; `line` is where it begins, for what has no line of the user's own."""
    demands = Demands()
    for _ in range(READINGS):
        context = Context(model, laws, demands, line)
        try:
            made = _read(context, inputs, name)
        except Again as again:
            if all(demands.splits.get(place) == sizes for place, sizes in again.splits.items()):
                context.fail(
                    "the width is taken apart in two ways that contradict each other", "reshape it one way everywhere"
                )
            demands = replace(demands, splits={**demands.splits, **again.splits})
            continue
        folds = {leaf: next(iter(c)) for leaf, c in context.uses.items() if len(c) == 1}
        folds = {leaf: c for leaf, c in folds.items() if c != 1.0}
        standard = -1.0 in context.scalings
        if folds == demands.folds and standard == demands.standard:
            return made
        demands = replace(demands, folds=folds, standard=standard)
    raise AssertionError("a model is read a bounded number of times")


def _read(context: Context, inputs: Sequence[Input | Data], name: str) -> Lowered:
    found: dict[str, Any] = {}

    def net(*given: Any) -> Any:
        context.at(context.line, "the function")
        parameters = Parameters(context)
        leaves: list[Value] = [parameters.par(k) for k in range(len(context.model.names))]
        values = [_given(context, x) for x in given]
        outs = Walk(context, parameters).run(context.model.bodies, [*leaves, *values], None)
        results = [_output(context, parameters, out) for out in outs]
        context.builder.at = None
        found["mapped"] = parameters.mapped
        found["axes"] = tuple(axes for _, axes in results)
        rebuilt = jax.tree.unflatten(context.model.outputs, [r for r, _ in results])
        return tuple(rebuilt) if isinstance(rebuilt, list) else rebuilt

    net.__name__ = name
    names = ["x"] if len(inputs) == 1 else [f"x{k + 1}" for k in range(len(inputs))]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    setattr(net, "__signature__", inspect.Signature([inspect.Parameter(n, kind) for n in names]))  # noqa: B010
    program = trace(net, *inputs)
    return Lowered(program, found["mapped"], found["axes"], tuple(context.remarks))


def _given(context: Context, x: Any) -> Value:
    """An input as the walk has it, unit axes left out."""
    if isinstance(x, Vector):
        fixed = tuple((d,) if d != 1 else () for d in x.sites)
        v = x if 1 not in x.sites else x[tuple(0 if d == 1 else slice(None) for d in x.sites)]
        features = x.features
        assert isinstance(features, int), "an input has features"
        return Vec((*fixed, (Own((features,) * len(context.trials)),)), v)
    want = tuple(d for d in x.sites if d != 1)
    s = x if want == x.sites else x.rearranged(lambda source: source.reshape(want), "{}")
    return Scal(x.sites, s)


def _output(context: Context, parameters: Parameters, out: Value) -> tuple[Any, Axes | None]:
    if isinstance(out, Par):
        out = as_vector(context, parameters, out)
    if isinstance(out, Known):
        raise bad_argument("build", "f returns numbers that no parameter enters", "return what the network computes")
    context.doing = "return"
    context.settled(out, "the output")
    return (plain_vector(context, out), out.axes) if isinstance(out, Vec) else (write_scalar(context, out), None)


def overridden(model: Model, laws: Sequence[Law], variances: Mapping[str, float] | None) -> list[Law]:
    """The laws with variances that the user gives, by a parameter's name; entries are then taken as independent."""
    found = list(laws)
    for name, value in (variances or {}).items():
        if name not in model.names:
            raise bad_argument("variances", f"there is no parameter {name!r}", f"name one of {', '.join(model.names)}")
        if isinstance(value, Callable) or not float(value) >= 0:  # pyright: ignore[reportArgumentType]
            raise bad_argument("variances", f"{name}: {value!r} is no variance", "give a number from 0 on")
        place = model.names.index(name)
        # σ² of σ²·n^p, p being the draw's own where it has one, and −1 for other matrices between two widths.
        drawn = laws[place]
        wide = sum(len(set(sizes)) > 1 for sizes in zip(*model.shapes[place], strict=True))
        p = drawn.variance.p if drawn.problem is None else -1.0 if wide > 1 else 0.0
        found[place] = Law(Power(0.0, 0.0), Power(float(value), p), True)
    return found
