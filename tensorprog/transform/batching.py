"""A program for a batch of examples, the batch a site axis: examples that share one draw of the parameters."""

from __future__ import annotations

from dataclasses import dataclass

from tensorprog.gia import reached
from tensorprog.ir import verify
from tensorprog.program import Program
from tensorprog.tracing.builder import Builder
from tensorprog.tracing.run import read_inputs
from tensorprog.tracing.values import Vector
from tensorprog.transform.replay import Replay, expanded


@dataclass(frozen=True)
class Batch:
    """The program of a batch, and where each of the original's positions went; all of them have the batch axis."""

    program: Program
    places: dict[int, int]


def together(program: Program, size: int, ends: tuple[int, ...]) -> Batch:
    """The program over `size` examples: inputs (size, *sites, features), data (size, *shape).

    Each end has the batch axis in front, whether it depends on the example or not.
    """
    structure = program.structure
    inputs = tuple(type(i)(size, *i.shape) for i in structure.inputs)
    builder = Builder.like(structure, program.leaves, inputs, structure.input_names)
    replay = Replay(structure, builder, read_inputs(builder), lead=(size,))
    values = replay.run(reached(structure, ends))
    places = {}
    for end in dict.fromkeys(ends):
        value = values[end]
        if not replay.leads[end]:
            value = expanded(value, (size, *value.sites))
        found = value.position() if isinstance(value, Vector) else value.ref()
        assert isinstance(found, int), "an end is an instruction"
        places[end] = found
    made = builder.structure(tuple(places[end] for end in ends), structure.single)
    verify(made)
    return Batch(Program(made, tuple(builder.values)), places)
