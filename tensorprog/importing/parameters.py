"""Parameters: what an array of the model is in a program, a random matrix or vector, by how it is first used.

An array whose entries have variance v·n^q is read along some of its axes. As a matrix with fan F·n it is
n^((q+1)/2) times a weight of variance v·F, as a vector n^(q/2) times one of variance v.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from tensorprog.importing.context import Again, Context
from tensorprog.importing.laws import Law
from tensorprog.importing.sizes import Sizes, order_text, snapped
from tensorprog.importing.values import Atom, Own, Par, Vec
from tensorprog.tracing.declare import Matrix, bias, weight
from tensorprog.tracing.values import Vector


@dataclass(frozen=True)
class Mapped:
    """How the program's parameter is got from the model's array: an index, axes in order, a factor and a shift."""

    leaf: int
    split: tuple[tuple[Sizes, ...], ...]  # the leaf's axes as atoms, at each width
    picked: tuple[tuple[int, int], ...]
    order: tuple[int, ...]  # atoms in the order of the program's array
    mean: float
    factor: float  # θ = (array − mean)·factor·n^power
    power: float
    one_row: bool


class Parameters:
    """The parameters of one reading, declared at their first use."""

    def __init__(self, context: Context):
        self.context = context
        self.atoms: list[list[Sizes]] = []  # leaf -> its atoms' sizes at the trial widths
        self.of_axis: list[list[tuple[int, ...]]] = []  # leaf -> atoms of each of its axes
        self.sources: list[list[int]] = []  # leaf -> the axis of each atom
        self.declared: dict[Any, tuple[Matrix, tuple[int, ...]] | Vec] = {}
        self.layouts: dict[Any, tuple[int, ...]] = {}  # the atoms of a vector's axes
        self.mapped: dict[str, Mapped] = {}
        for leaf, shapes in enumerate(context.model.shapes):
            self._leaf(leaf, list(zip(*shapes, strict=True)))

    def _leaf(self, leaf: int, axes: Sequence[Sizes]) -> None:
        atoms: list[Sizes] = []
        places: list[tuple[int, ...]] = []
        sources: list[int] = []
        for axis, sizes in enumerate(axes):
            if set(sizes) == {1}:
                places.append(())
                continue
            own = [s for s in self.context.demands.splits.get((leaf, axis), (sizes,)) if set(s) != {1}]
            places.append(tuple(range(len(atoms), len(atoms) + len(own))))
            sources += [axis] * len(own)
            atoms += own
        self.atoms.append(atoms)
        self.of_axis.append(places)
        self.sources.append(sources)

    def par(self, leaf: int) -> Par:
        return Par(leaf, tuple(self.of_axis[leaf]))

    def atom(self, par: Par, atom: int) -> Atom:
        return self.context.atom(self.atoms[par.leaf][atom])

    def size(self, par: Par, atom: int) -> int:
        return self.atoms[par.leaf][atom][0]

    def split(self, leaf: int, atom: int, sizes: Sequence[Sizes]) -> NoReturn:
        """Have an atom of a parameter be read as several."""
        axis = self.sources[leaf][atom]
        whole = [tuple(sizes) if a == atom else (self.atoms[leaf][a],) for a in self.of_axis[leaf][axis]]
        raise Again({(leaf, axis): tuple(s for part in whole for s in part)})

    def law(self, leaf: int) -> Law:
        law = self.context.laws[leaf]
        if law.problem is not None:
            name = self.context.model.names[leaf]
            self.context.fail(
                f"{name}: {law.problem}",
                f"draw independent entries whose variance is a power of the width, normal of variance 1/fan_in say, or "
                f"give variances={{'{name}': σ²}} with the variance that they shall be taken with",
            )  # fmt: skip
        return law

    def name(self, par: Par) -> str:
        return self.context.model.names[par.leaf] + "".join(f"[{index}]" for _, index in par.picked)

    # ---- matrices

    def matrix(
        self, par: Par, own_sites: Sequence[int], window: Sequence[int], rows: int | None, cols: int
    ) -> tuple[Matrix, float, str | None]:
        """The weight that reads `cols` and `window`, one for each of `own_sites`; atoms of the leaf.

        **Returns:** the matrix, the order of its product, and why it has that.
        """
        context, name = self.context, self.name(par)
        key = (par.leaf, par.picked)
        layout = (*own_sites, *window, *(() if rows is None else (rows,)), cols)
        law = self.law(par.leaf)
        cols_atom, rows_atom = self.atom(par, cols), 1 if rows is None else self.atom(par, rows)
        is_wide = isinstance(cols_atom, Own)
        order = (law.variance.p + (1 if is_wide else 0)) / 2
        if is_wide:
            self.context.scalings.add(law.variance.p)
        cause = None
        if order:
            more = "more" if order > 0 else "less"
            size = f"{law.variance.c:.3g}" + (f"·{order_text(law.variance.p)}" if law.variance.p else "")
            cause = f"{name} has entries of variance {size}, {more} than 1/fan_in"
        known = self.declared.get(key)
        if known is None:
            known = self._declare(par, name, law, own_sites, window, rows_atom, cols_atom, layout, rows is None)
        if isinstance(known, Vec):
            context.fail(
                f"{name} is used as a vector and as a matrix", "use two parameters, or write one use as the other"
            )
        matrix, first = known
        if first == layout:
            return matrix, order, cause
        swapped = (*own_sites, *window, cols, *(() if rows is None else (rows,)))
        if rows is not None and swapped == first and not own_sites and not window:
            return matrix.T, order, cause
        context.fail(
            f"{name} is read along other axes than before",
            "a matrix W and its transpose, over one axis each, are one parameter; else use two",
        )  # fmt: skip

    def _declare(
        self, par: Par, name: str, law: Law, own_sites: Sequence[int], window: Sequence[int], rows: Atom, cols: Atom,
        layout: tuple[int, ...], one_row: bool,
    ) -> tuple[Matrix, tuple[int, ...]]:  # fmt: skip
        context = self.context
        if law.mean.c:
            context.fail(
                f"{name} has entries of mean {law.mean.c:.4g}, which a matrix multiplies by a sum over the width",
                "draw a matrix of mean 0, and add what the mean does as a term of its own",
            )  # fmt: skip
        if not law.variance.c:
            context.fail(
                f"{name} starts at 0, and a matrix of zeros has no limit of its own",
                f"start it at small random entries, or give variances={{'{name}': σ²}}; a branch that starts at 0 can "
                "have a gain of 0 instead, a vector",
            )  # fmt: skip
        sizes = self.atoms[par.leaf]
        fixed = math.prod(sizes[a][0] for a in window)
        is_wide = isinstance(cols, Own)
        r = context.ratio(cols.sizes) if isinstance(cols, Own) else None
        fan = float(fixed * (r if r is not None else self._size(cols)))
        fold = context.demands.folds.get(par.leaf, 1.0)
        var = snapped(law.variance.c * fan * fold**2, 1e-6)
        trained = None if context.standard else snapped(abs(fold) * math.sqrt(fan), 1e-12)
        if trained is not None and abs(trained**2 - var) < 1e-6 * var:
            trained = None
        dims = [context.dimension(a) if isinstance(a, Own) else a for a in (rows, cols)]
        made = weight(
            name, dims[0], dims[1], var=var, scale=trained, window=tuple(sizes[a][0] for a in window),
            sites=tuple(sizes[a][0] for a in own_sites),
        )  # fmt: skip
        scale = math.sqrt(var) if trained is None else trained
        # W = scale·θ/√fan is fold·array·n^(−order) with the whole fan.
        order = (law.variance.p + (1 if is_wide else 0)) / 2
        factor = abs(fold) * math.sqrt(fan) / scale
        self.mapped[name] = Mapped(
            par.leaf, self._splits(par.leaf), par.picked, layout, 0.0, factor * np.sign(fold),
            (0.5 if is_wide else 0.0) - order, one_row,
        )  # fmt: skip
        if fixed * (1 if is_wide else 0) == 0 and not law.gaussian:
            self._remark(name, "its fan is fixed")
        self.declared[par.leaf, par.picked] = made, layout
        return made, layout

    @staticmethod
    def _size(atom: Atom) -> int:
        return atom if isinstance(atom, int) else atom.sizes[0]

    def _splits(self, leaf: int) -> tuple[tuple[Sizes, ...], ...]:
        return tuple(tuple(self.atoms[leaf][a] for a in axis) for axis in self.of_axis[leaf])

    def _remark(self, name: str, why: str) -> None:
        self.context.remarks[
            f"{name} is not normal and {why}: it is taken as the Gaussian of equal variance, which its own limit "
            "differs from"
        ] = None

    # ---- vectors

    def vector(self, par: Par) -> tuple[Vec, tuple[int, ...]]:
        """A parameter as an initial vector at the sites that its other axes are, and the atoms of its axes."""
        context, name = self.context, self.name(par)
        atoms = [a for axis in par.axes for a in axis]
        wide = [a for a in atoms if isinstance(self.atom(par, a), Own)]
        if len(wide) > 1:
            context.fail(
                f"{name} has several axes that go to infinity, and is used entry by entry",
                "a matrix multiplies vectors, W @ x; its entries are no vector of the program",
            )  # fmt: skip
        own = wide[0] if wide else atoms[-1] if atoms else None
        key = (par.leaf, par.picked)
        if key not in self.declared:
            self.declared[key] = self._bias(par, name, [a for a in atoms if a != own], own)
        found = self.declared[key]
        if not isinstance(found, Vec):
            context.fail(
                f"{name} is a matrix of the program, and is used entry by entry", "use two parameters, one for each use"
            )
        return found, self.layouts[key]

    def _bias(self, par: Par, name: str, others: Sequence[int], own: int | None) -> Vec:
        context, law = self.context, self.law(par.leaf)
        if law.mean.p:
            context.fail(
                f"{name} has a mean that changes with the width like {order_text(law.mean.p)}",
                "draw it with a mean that does not depend on the width",
            )  # fmt: skip
        sizes = self.atoms[par.leaf]
        v, q = law.variance.c, law.variance.p
        order, cause = q / 2 if v and others else 0.0, None
        if v and q and (others or q > 0):
            order = q / 2
            cause = f"{name} has entries of variance {v:.3g}·{order_text(q)}"
        if v and q < 0 and not others:
            v = 0.0  # a bias that vanishes with the width, and trains
        fold = context.demands.folds.get(par.leaf, 1.0) if not law.mean.c else 1.0
        var = snapped(v * fold**2, 1e-6)
        scale = None if context.standard and v else snapped(abs(fold), 1e-12)
        if scale is not None and v and abs(scale**2 - var) < 1e-6 * var:
            scale = None
        own_atom: Atom = 1 if own is None else self.atom(par, own)
        dim = context.dimension(own_atom) if isinstance(own_atom, Own) else own_atom
        made: Vector = bias(name, dim, var=var, mean=law.mean.c, scale=scale, sites=tuple(sizes[a][0] for a in others))
        layout = tuple(others) + (() if own is None else (own,))
        whole = math.sqrt(var) if scale is None else scale
        self.mapped[name] = Mapped(
            par.leaf, self._splits(par.leaf), par.picked, layout, law.mean.c, fold / (whole or 1.0), -order, own is None
        )
        if not law.gaussian and v:
            self._remark(name, "added entry by entry")
        axes = tuple((self._size(self.atom(par, a)),) for a in others)
        if own is not None:
            axes = (*axes, (Own(sizes[own]),))
        leaf = par.leaf if not law.mean.c and v else None
        origins = frozenset({(par.leaf, self.sources[par.leaf][own])} if own is not None else ())
        found = Vec(axes, made, order=order, cause=cause, origins=origins, leaf=leaf)
        self.layouts[par.leaf, par.picked] = layout
        return found


def theta(mapped: Mapped, array: np.ndarray, width: int, place: int, shape: Sequence[int]) -> np.ndarray:
    """The program's array of a parameter, from the model's at a trial width."""
    split = [sizes[place] for axis in mapped.split for sizes in axis]
    array = array.reshape(split)
    kept = list(range(len(split)))
    for atom, index in mapped.picked:
        array = array.take(index, kept.index(atom))
        kept.remove(atom)
    array = array.transpose([kept.index(a) for a in mapped.order if a in kept])
    return ((array - mapped.mean) * mapped.factor * float(width) ** mapped.power).reshape(tuple(shape))
