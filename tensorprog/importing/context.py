"""What every rule of the import needs: the widths, the laws, the user's line, and how to refuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NoReturn

import numpy as np

from tensorprog.errors import Line, problem
from tensorprog.importing.laws import Law
from tensorprog.importing.models import Model
from tensorprog.importing.sizes import NoPower, Power, Sizes, collapsed, order_text, power, ratio, width_name
from tensorprog.importing.values import Atom, Known, Own, Place, Scal, Vec
from tensorprog.tracing.builder import Builder, Width, builder

NO_LIMIT = "a sum of n independent terms grows like √n, an average of n terms (a sum times 1/n) converges"


class Again(Exception):
    """The program must be written once more: these axes of parameters are several axes."""

    def __init__(self, splits: dict[Place, tuple[Sizes, ...]]):
        self.splits = splits


@dataclass
class Demands:
    """What one reading of a model taught about its parameters, for the next."""

    splits: dict[Place, tuple[Sizes, ...]] = field(default_factory=dict)  # a leaf's axis -> the sizes it is read as
    folds: dict[int, float] = field(default_factory=dict)  # the one multiplier that a parameter is used with
    standard: bool = False  # whether variances 1/n stand in the draws, and not as multipliers in the function


@dataclass
class Context:
    """One reading of a model."""

    model: Model
    laws: Sequence[Law]
    demands: Demands
    line: Line | None = None
    doing: str = "the function"
    uses: dict[int, set[float]] = field(default_factory=dict)
    scalings: set[float] = field(default_factory=set)  # the powers of the width in variances of wide fan
    remarks: dict[str, None] = field(default_factory=dict)
    widths: dict[Fraction, Width] = field(default_factory=dict)

    @property
    def standard(self) -> bool:
        return self.demands.standard

    @property
    def trials(self) -> tuple[int, ...]:
        return self.model.widths

    @property
    def builder(self) -> Builder:
        return builder("an import")

    def at(self, line: Line | None, doing: str) -> None:
        """From here on everything is for this line of the user's, and this equation."""
        self.doing = doing
        if line is not None:
            self.line = self.builder.at = line

    def fail(self, why: str, remedy: str) -> NoReturn:
        raise problem(self.line, self.doing, why, remedy)

    # ---- sizes and numbers

    def ratio(self, sizes: Sizes) -> Fraction | None:
        try:
            return ratio(self.trials, sizes)
        except NoPower as error:
            self.fail(
                str(error), "make every size that grows a fixed multiple of the width, 2 * n; where heads or groups "
                "must divide it, give widths=(96, 160, 224), say",
            )  # fmt: skip

    def dimension(self, own: Own) -> Width | int:
        """The own axis of a vector as a program has it."""
        r = self.ratio(own.sizes)
        if r is None:
            return own.sizes[0]
        if r not in self.widths:
            self.widths[r] = Width(width_name(r), ratio=float(r))
        return self.widths[r]

    def atom(self, sizes: Sizes) -> Atom:
        """An axis of a parameter: a fixed size, or one that grows."""
        return sizes[0] if self.ratio(sizes) is None else Own(sizes)

    def number(self, known: Known) -> Power:
        """One number c·n^p."""
        try:
            arrays = collapsed(known.arrays)
            if any(a.size != 1 for a in arrays):
                raise NoPower("an array stands where one number is needed")
            return power(self.trials, [a.item() for a in arrays])
        except NoPower as error:
            self.fail(str(error), "write powers of the width, n**0.5, n, 1/n, times numbers that don't depend on it")

    def array(self, known: Known) -> tuple[np.ndarray, float]:
        """An array that is c·n^p, with unit axes where it is constant."""
        try:
            arrays = collapsed(known.arrays)
            flat = [np.ravel(a) for a in arrays]
            if all((a == flat[0]).all() for a in flat):
                return arrays[0], 0.0
            powers = [power(self.trials, [a[k] for a in flat]) for k in range(flat[0].size)]
            (p,) = {q.p for q in powers if q.c} or {0.0}
        except NoPower as error:
            self.fail(
                str(error), "numbers that differ along the width (positions of features, masks of units) have no "
                "limit: make them parameters",
            )  # fmt: skip
        except ValueError:
            self.fail("an array of numbers that grow at several rates", "scale all of it by one power of the width")
        return np.asarray([q.c for q in powers]).reshape(arrays[0].shape), p

    def is_zero(self, value: Any) -> bool:
        return isinstance(value, Known) and all(not np.any(np.asarray(a)) for a in value.arrays)

    # ---- growth

    def settled(self, value: Vec | Scal, what: str) -> None:
        """Refuse what grows or vanishes where it enters a function that is not linear."""
        if value.order:
            self.diverges(value, what)

    def diverges(self, value: Vec | Scal, what: str) -> NoReturn:
        grows = value.order > 0
        cause = f"; {value.cause}" if value.cause else ""
        self.fail(
            f"{what} {'grows' if grows else 'vanishes'} with the width like {order_text(value.order)}{cause}",
            value_remedy(value),
        )


def value_remedy(value: Vec | Scal) -> str:
    if isinstance(value, Scal) and value.cause == PRODUCT and value.order == 0.5:
        return ATTENTION
    return f"multiply it by {order_text(-value.order)}, or draw the parameter it is made of with another variance"


PRODUCT = "it is a sum over the width of products of two vectors"
ATTENTION = (
    "scores of queries and keys converge when they are divided by d, the head's size, and not by √d: in a function of "
    "your own write q @ k.T / d; in Flax attention_fn=tp.attention_over_d; in Equinox "
    "attention(q, k, v, process_heads=tp.process_heads_over_d)"
)
