"""Architectures as ordinary functions on traced values, and ZOO: a small instance of each by name.

An entry of ZOO is checked, benchmarked and documented at once; adding one is a function here and a line below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tensorprog.errors import ProgramError
from tensorprog.ir import Data, Input
from tensorprog.nets.attention import transformer
from tensorprog.nets.convolutional import cnn_flatten, cnn_gap, cnn_maxpool, resnet, unet, wide_resnet
from tensorprog.nets.gated import dropout_mlp, swiglu
from tensorprog.nets.multilayer import autoencoder_tied, mlp, mlp_tied, mlp_two_widths, resnet_mlp
from tensorprog.nets.normalised import batchnorm_cnn, batchnorm_mlp, layernorm_mlp, rmsnorm_mlp
from tensorprog.nets.recurrent import gru, lstm, rnn, rnn_bidirectional, rnn_mean
from tensorprog.nets.sets import deep_sets, gcn, siamese
from tensorprog.program import Program
from tensorprog.tracing.run import trace


@dataclass(frozen=True)
class Net:
    """An architecture: its function, the inputs of a small instance, and how it reads a grey image."""

    fn: Callable[..., Any]
    inputs: tuple[Input | Data, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    image: str = "flat"

    def program(self, *inputs: Input | Data, **keywords: Any) -> Program:
        """The architecture traced: for the small instance's inputs, or others; keywords go to its function."""
        return trace(self.fn, *(inputs or self.inputs), **{**self.keywords, **keywords})


NETS: dict[str, Net] = {
    "mlp": Net(mlp, (Input(4),)),
    "mlp_tied": Net(mlp_tied, (Input(4),)),
    "mlp_two_widths": Net(mlp_two_widths, (Input(4),)),
    "resnet_mlp": Net(resnet_mlp, (Input(4),), {"var_w": 1.0}),
    "autoencoder_tied": Net(autoencoder_tied, (Input(4),)),
    "layernorm_mlp": Net(layernorm_mlp, (Input(4),)),
    "rmsnorm_mlp": Net(rmsnorm_mlp, (Input(4),)),
    "batchnorm_mlp": Net(batchnorm_mlp, (Input(5, 4),), {"depth": 2}, image="batch"),
    "batchnorm_cnn": Net(batchnorm_cnn, (Input(4, 2, 2, 2),), {"depth": 2}, image="batch of pixels"),
    "swiglu": Net(swiglu, (Input(4),), {"depth": 2}),
    "dropout_mlp": Net(dropout_mlp, (Input(4),)),
    "rnn": Net(rnn, (Input(3, 4),), image="rows"),
    "rnn_mean": Net(rnn_mean, (Input(3, 4),), image="rows"),
    "rnn_bidirectional": Net(rnn_bidirectional, (Input(3, 4),), image="rows"),
    "gru": Net(gru, (Input(3, 4),), image="rows"),
    "lstm": Net(lstm, (Input(3, 4),), image="rows"),
    "cnn_flatten": Net(cnn_flatten, (Input(4, 4, 2),), image="pixels"),
    "cnn_gap": Net(cnn_gap, (Input(4, 4, 2),), image="pixels"),
    "cnn_maxpool": Net(cnn_maxpool, (Input(4, 4, 2),), image="pixels"),
    "resnet": Net(resnet, (Input(4, 4, 2),), {"depth": 2}, image="pixels"),
    "wide_resnet": Net(wide_resnet, (Input(4, 4, 2),), {"groups": 2}, image="pixels"),
    "unet": Net(unet, (Input(4, 2),), image="rows"),
    "transformer": Net(transformer, (Input(4, 3),), image="rows"),
    "gcn": Net(gcn, (Input(4, 3), Data(4, 4)), image="graph"),
    "deep_sets": Net(deep_sets, (Input(4, 3),), image="rows"),
    "siamese": Net(siamese, (Input(4), Input(4)), image="pairs"),
}


class _Zoo(Mapping[str, Program]):
    """Small instances by name, traced when asked for."""

    def __getitem__(self, name: str) -> Program:
        return net(name).program()

    def __contains__(self, name: object) -> bool:
        return name in NETS

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


__all__ = [
    "NETS", "ZOO", "Net", "autoencoder_tied", "batchnorm_cnn", "batchnorm_mlp", "cnn_flatten", "cnn_gap", "cnn_maxpool",
    "deep_sets", "dropout_mlp", "gcn", "gru", "layernorm_mlp", "lstm", "mlp", "mlp_tied", "mlp_two_widths", "net",
    "resnet", "resnet_mlp", "rmsnorm_mlp", "rnn", "rnn_bidirectional", "rnn_mean", "siamese", "swiglu", "transformer",
    "unet", "wide_resnet",
]  # fmt: skip
