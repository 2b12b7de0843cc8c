"""Architectures as ordinary functions on traced values, and ZOO: a small instance of each by name.

An entry of ZOO is checked, benchmarked and documented at once; adding one is a function here and a line below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tensorprog.errors import ProgramError
from tensorprog.ir import Input
from tensorprog.nets.multilayer import mlp, mlp_tied, mlp_two_widths, resnet_mlp
from tensorprog.nets.recurrent import rnn, rnn_mean
from tensorprog.program import Program
from tensorprog.tracing.run import trace


@dataclass(frozen=True)
class Net:
    """An architecture: its function, the inputs of a small instance, and how it reads a grey image."""

    fn: Callable[..., Any]
    inputs: tuple[Input, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    image: str = "flat"

    def program(self, *inputs: Input, **keywords: Any) -> Program:
        """The architecture traced: for the small instance's inputs, or others; keywords go to its function."""
        return trace(self.fn, *(inputs or self.inputs), **{**self.keywords, **keywords})


NETS: dict[str, Net] = {
    "mlp": Net(mlp, (Input(4),)),
    "mlp_tied": Net(mlp_tied, (Input(4),)),
    "mlp_two_widths": Net(mlp_two_widths, (Input(4),)),
    "resnet_mlp": Net(resnet_mlp, (Input(4),), {"var_w": 1.0}),
    "rnn": Net(rnn, (Input(3, 4),), image="rows"),
    "rnn_mean": Net(rnn_mean, (Input(3, 4),), image="rows"),
}


class _Zoo(Mapping[str, Program]):
    """Small instances by name, traced when asked for."""

    def __getitem__(self, name: str) -> Program:
        return net(name).program()

    def __iter__(self) -> Any:
        return iter(NETS)

    def __len__(self) -> int:
        return len(NETS)


ZOO: Mapping[str, Program] = _Zoo()


def net(name: str) -> Net:
    """An architecture by its name.

    **Raises:** `ProgramError` for a name that is not in the zoo.
    """
    if name not in NETS:
        raise ProgramError(f"{name!r} is no architecture of the zoo; its names are {', '.join(NETS)}")
    return NETS[name]


__all__ = ["NETS", "ZOO", "Net", "mlp", "mlp_tied", "mlp_two_widths", "net", "resnet_mlp", "rnn", "rnn_mean"]
