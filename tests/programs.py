"""Random programs: a hypothesis strategy of sketches, each of which is written out as Python source and traced.

A sketch is a short list of steps of small integers, and any list is a program: a step picks its operands among the
vectors that there are, counted backwards, and does nothing where it does not fit. So removing steps and lowering
numbers keeps it a program, which is how hypothesis shrinks. What comes out is source text in the public language, and
the program traced from it: a failure is a text to copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import tensorprog as tp
from tensorprog import ir

HEALTH: list[HealthCheck] = [*HealthCheck]  # pyright: ignore[reportAssignmentType]: the stubs' metaclass yields itself
MOST = 20
"""Instructions of a program."""
FEATURES = 2
HIGHEST_DEGREE = 3
"""Of a vector as a polynomial in Gaussians: draws of anything higher tell little."""
SITES = 3
"""The most sites of one vector."""

FAMILIES = (
    ("jax.nn.relu", "jnp.abs", "jnp.square", "lambda z: 1 + z - z**2 / 2"),
    ("jax.scipy.special.erf", "jax.nn.gelu", "jnp.square"),
    ("jnp.sin", "jnp.cos", "lambda z: 1 + z - z**2 / 2"),
    ("jnp.tanh", "jax.nn.relu", "jnp.sin"),
)
"""Functions of one vector. Those of one family have closed forms with each other; the last is no family."""
DEGREES = {"jax.nn.relu": 1.0, "jnp.abs": 1.0, "jnp.square": 2.0, "lambda z: 1 + z - z**2 / 2": 2.0, "jax.nn.gelu": 1.0}
"""The factor that a function puts to a degree, 0 for bounded ones."""
BINARY = ("jax.nn.relu(a) * jnp.sin(b)", "jnp.maximum(a, b)", "jnp.tanh(a) * b")
"""Functions of two vectors beside their product."""
COEFFICIENTS = (1.0, -1.0, 0.5, 2.0)
VARIANCES = (1.0, 2.0, 0.5)


@dataclass(frozen=True)
class Step:
    """What to do, with the a-th and b-th last vector, in its k-th variant."""

    do: str
    a: int = 0
    b: int = 0
    k: int = 0


@dataclass(frozen=True)
class Sketch:
    """A program to be: sites of the input (0: none), what stands beside it, the ratio of the second width (0: there is
    none; a program with two has no Moments, whose backward pass asks for one width), which family its functions are of,
    the steps, and how it ends."""

    sites: int = 0
    beside: str = ""
    ratio: float = 0.0
    family: int = 0
    steps: tuple[Step, ...] = ()
    ends: tuple[int, ...] = (0,)

    @cached_property
    def written(self) -> Writer:
        """The longest beginning of the steps that makes at most MOST instructions."""
        for count in range(len(self.steps), -1, -1):
            writer = Writer(self)
            for step in self.steps[:count]:
                writer.step(step)
            writer.end(self.ends)
            program = writer.trace()
            if len(program.structure.instructions) <= MOST:
                return writer
        raise AssertionError("a program without steps is short")

    @property
    def source(self) -> str:
        return self.written.source

    @property
    def program(self) -> tp.Program:
        return self.written.trace()

    def data(self, count: int = 2) -> Any:
        """Fixed inputs, correlated but not alike; positive data."""
        rng = np.random.default_rng(self.sites)
        arrays = []
        for declared in self.program.structure.inputs:
            values = rng.normal(size=(count, *declared.shape))
            arrays.append(jnp.asarray(np.abs(values) if isinstance(declared, tp.Data) else values))
        return arrays[0] if len(arrays) == 1 else tuple(arrays)

    def __str__(self) -> str:
        return f"{self.program}\n\n{self.source}"


@dataclass(frozen=True)
class Vector:
    """A wide vector of a program being written.

    `gaussian`: linear in Gaussians; else a function of those that `atoms` name, about of some degree.
    """

    name: str
    width: str
    sites: int = 0
    gaussian: bool = True
    atoms: frozenset[Any] = frozenset()
    degree: float = 1.0


@dataclass
class Writer:
    """Source lines of a program, and what is known of each of its vectors and scalars."""

    sketch: Sketch
    lines: list[str] = field(default_factory=list)
    declared: dict[str, str] = field(default_factory=dict)
    vectors: list[Vector] = field(default_factory=list)
    scalars: list[tuple[str, int]] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    # ---- reading and writing

    def pick(self, index: int, fits: Callable[[Vector], bool] = lambda v: True) -> Vector | None:
        """The index-th last of the vectors that fit; a first product with the input where there is none at all."""
        if not self.vectors:
            self.step(Step("read"))
        fitting = [v for v in reversed(self.vectors) if fits(v)]
        return fitting[index % len(fitting)] if fitting else None

    def declare(self, name: str, text: str) -> str:
        """A parameter by its name: the second use of the name is the same parameter."""
        self.declared.setdefault(name, f"{name} = tp.{text.replace('(', f'({name!r}, ', 1)}")
        return name

    def emit(self, text: str, like: Vector, **changes: Any) -> Vector:
        """A new vector; a Gaussian one is an atom of its own."""
        name = f"h{len(self.vectors)}"
        self.lines.append(f"{name} = {text}")
        values = {"width": like.width, "sites": like.sites, "gaussian": like.gaussian, "atoms": like.atoms}
        vector = Vector(name, **{**values, "degree": like.degree, **changes})
        if vector.gaussian:
            vector = Vector(name, vector.width, vector.sites, True, frozenset({name}))
        self.vectors.append(vector)
        return vector

    def step(self, step: Step) -> None:
        getattr(self, step.do)(step)

    @property
    def source(self) -> str:
        names = {"data": ", a", "mask": ", a", "input": ", y"}.get(self.sketch.beside, "")
        body = ['n = tp.Width("n")', f'm = tp.Width("m", ratio={self.sketch.ratio})']
        body += [*self.declared.values(), *self.lines, f"return {', '.join(self.outputs)}"]
        if not any(" m," in line or " m)" in line for line in self.declared.values()):
            body.pop(1)
        return "\n    ".join([f"def program(x{names}):", *body])

    def trace(self) -> tp.Program:
        space: dict[str, Any] = {"tp": tp, "jax": jax, "jnp": jnp, "np": np}
        exec(compile(self.source, "program", "exec"), space)
        sites = (self.sketch.sites,) if self.sketch.sites else ()
        beside = {"data": [tp.Data(*sites, *sites)], "mask": [tp.Data(*sites)], "input": [tp.Input(3)]}
        return tp.trace(space["program"], tp.Input(*sites, FEATURES), *beside.get(self.sketch.beside, []))

    def width(self, index: int) -> str:
        return "nm"[index % 2] if self.sketch.ratio else "n"

    # ---- products and sums

    def read(self, step: Step) -> None:
        """U x, of one site or of all, of the second input where there is one."""
        width, slot = self.width(step.b), step.a % 2
        sites, source, features = self.sketch.sites, "x", FEATURES
        if self.sketch.beside == "input" and step.k % 3 == 2:
            sites, source, features = 0, "y", 3
        elif sites and step.k % 3 == 1:
            sites, source = 0, f"x[{step.b % sites}]"
        elif sites and step.k % 3 == 2 and self.sketch.beside == "data":
            source = "tp.mix(a, x)"
        name = self.declare(f"U{slot}{width}{features}", f"weight({width}, {features}, var={VARIANCES[slot]})")
        self.emit(f"{name} @ {source}", Vector("", width, sites))

    def matmul(self, step: Step, v: Vector | None = None) -> Vector | None:
        """W h; the third slot is a matrix that acts as its transpose only."""
        v = v or self.pick(step.a)
        assert v is not None, "there is always a vector"
        width, slot = self.width(step.b), (0, 0, 1, 0, 2)[step.k % 5]
        if slot == 2:
            name = self.declare(f"V{v.width}{width}", f"weight({v.width}, {width}, lr=0.5)") + ".T"
        else:
            name = self.declare(f"W{slot}{width}{v.width}", f"weight({width}, {v.width}, var={VARIANCES[slot]})")
        return self.emit(f"{name} @ {v.name}", v, width=width, gaussian=True)

    def layer(self, step: Step) -> None:
        """W fn(h)."""
        self.nonlin(step)
        self.matmul(Step("matmul", b=step.b, k=step.k))

    def bias(self, step: Step) -> None:
        v = self.pick(step.a)
        assert v is not None, "there is always a vector"
        options = ("var=0.2", "var=0.2, mean=0.3", "var=0.0, scale=1.0, lr=2.0", f"var=0.5, sites=({v.sites},)")
        k = step.k % (4 if v.sites else 3)
        name = self.declare(f"b{k}{v.width}{v.sites if k == 3 else ''}", f"bias({v.width}, {options[k]})")
        self.emit(f"{v.name} + {name}", v, atoms=v.atoms | {name})

    def add(self, step: Step) -> None:
        """A sum with coefficients: branches."""
        v = self.pick(step.a)
        w = v and self.pick(step.b, lambda w: w != v and self.beside(v, w))
        if v is None or w is None:
            return
        c = COEFFICIENTS[step.k % 4]
        text = f"{v.name} + {w.name}" if c == 1.0 else f"{v.name} + {c} * {w.name}"
        self.emit(text, v, **self.both(v, w), gaussian=v.gaussian and w.gaussian, degree=max(v.degree, w.degree))

    def beside(self, v: Vector, w: Vector) -> bool:
        return v.width == w.width and (v.sites == w.sites or 0 in (v.sites, w.sites))

    def both(self, v: Vector, w: Vector) -> dict[str, Any]:
        return {"sites": max(v.sites, w.sites), "atoms": v.atoms | w.atoms}

    # ---- functions

    def few(self, v: Vector, step: Step, most: int = 2) -> Vector:
        """A vector that a function can take: a product with a matrix goes before one of many Gaussians."""
        if len(v.atoms) <= most:
            return v
        found = self.matmul(Step("matmul", b="nm".index(v.width), k=step.k), v)
        assert found is not None, "a product is always possible"
        return found

    def nonlin(self, step: Step) -> None:
        v = self.pick(step.a)
        assert v is not None, "there is always a vector"
        family = FAMILIES[self.sketch.family]
        fn = family[step.k % len(family)]
        power = DEGREES.get(fn, 0.0)
        v = self.few(v, step)
        if v.degree * power > HIGHEST_DEGREE:
            return
        self.emit(f"tp.nonlin({fn}, {v.name})", v, gaussian=False, degree=v.degree * power)

    def binary(self, step: Step) -> None:
        v = self.pick(step.a)
        if v is None:
            return
        w = self.pick(step.b, partial(self.beside, v))
        if w is None:
            return
        fn = BINARY[step.k % len(BINARY)] if step.k > 5 and self.sketch.family == len(FAMILIES) - 1 else "a * b"
        if fn != "a * b":
            v, w = self.few(v, step, 1), self.few(w, step, 1)
        degree = v.degree + w.degree if fn == "a * b" else max(v.degree, w.degree)
        if degree > HIGHEST_DEGREE:
            return
        text = f"{v.name} * {w.name}" if fn == "a * b" else f"tp.nonlin(lambda a, b: {fn}, {v.name}, {w.name})"
        self.emit(text, v, **self.both(v, w), gaussian=False, degree=degree)

    # ---- scalars

    def moment(self, step: Step) -> None:
        """A Moment, kept as a scalar."""
        if self.sketch.ratio:
            return
        v = self.few(self.pick(step.a) or self.vectors[-1], step)
        if 2 * v.degree > HIGHEST_DEGREE + 1:
            return
        fn = ("jnp.square", "jnp.abs", "lambda z: z")[step.k % 3]
        self.scalar(f"tp.moment({fn}, {v.name})", v.sites)

    def scalar(self, text: str, sites: int) -> str:
        name = f"c{len(self.scalars)}"
        self.lines.append(f"{name} = {text}")
        self.scalars.append((name, sites))
        return name

    def scale(self, step: Step) -> None:
        """Times a scalar, plus one, or times a function of one."""
        v = self.pick(step.a)
        assert v is not None, "there is always a vector"
        known = [*self.scalars]
        if self.sketch.beside == "mask":
            known.append(("a", self.sketch.sites))
        fitting = [(name, sites) for name, sites in reversed(known) if 0 in (sites, v.sites) or sites == v.sites]
        if not fitting:
            self.emit(f"{v.name} * 0.5", v)
            return
        name, sites = fitting[step.b % len(fitting)]
        by = (f"* {name}", f"- {name}", f"* tp.scalar(lambda c: 1 / (1 + c * c), {name})")[step.k % 3]
        self.emit(f"{v.name} {by}", v, sites=max(sites, v.sites))

    def norm(self, step: Step) -> None:
        """Layer norm, or RMS norm without its first line."""
        if self.sketch.ratio:
            return
        v = self.few(self.pick(step.a) or self.vectors[-1], step)
        if 2 * v.degree > HIGHEST_DEGREE + 1:
            return
        if step.k % 2:
            centre = self.scalar(f"tp.moment(lambda z: z, {v.name})", v.sites)
            v = self.emit(f"{v.name} - {centre}", v)
        size = self.scalar(f"tp.moment(jnp.square, {v.name})", v.sites)
        self.emit(f"{v.name} * tp.scalar(lambda c: 1 / jnp.sqrt(c + 0.1), {size})", v)

    def attend(self, step: Step) -> None:
        """Every site's mean of all, by softmax of inner products."""
        v = None if self.sketch.ratio else self.pick(step.a, lambda v: v.sites > 1)
        w = v and self.pick(step.b, lambda w: w.width == v.width and w.sites == v.sites)
        if v is None or w is None:
            return
        scores = f"tp.scalar(jax.nn.softmax, tp.inner({v.name}, {w.name}))"
        self.emit(f"tp.mix({scores}, {w.name})", w, atoms=self.mixed(w))

    def mixed(self, v: Vector) -> frozenset[Any]:
        """A sum over sites has the Gaussians of all of them."""
        return frozenset((atom, site) for atom in v.atoms for site in range(max(1, v.sites)))

    # ---- sites

    def site(self, step: Step) -> None:
        """Sites picked, turned around, put side by side, added up, padded, pooled, mixed."""
        v = self.pick(step.a, lambda v: v.sites > 0)
        if v is None:
            v = self.pick(step.a)
            assert v is not None, "there is always a vector"
            w = self.pick(step.b, lambda w: w.width == v.width and w.sites == 0)
            if w:
                self.emit(f"tp.stack([{v.name}, {w.name}])", v, sites=2, atoms=v.atoms | w.atoms,
                          gaussian=v.gaussian and w.gaussian, degree=max(v.degree, w.degree))  # fmt: skip
            return
        size, all_sites = v.sites, self.mixed(v)
        match step.k % 8:
            case 0:
                self.emit(f"{v.name}[{step.b % size}]", v, sites=0)
            case 1:
                self.emit(f"tp.mean({v.name})", v, sites=0, atoms=all_sites)
            case 2:
                self.emit(f"{v.name}[::-1]", v)
            case 3 if size > 1:
                self.emit(f"tp.pool({v.name}, 2, 1)", v, sites=size - 1, atoms=all_sites)
            case 4 if size < SITES:
                self.emit(f"tp.pad({v.name}, (({step.b % 2}, {1 - step.b % 2}),))", v, sites=size + 1)
            case 5 if self.sketch.beside == "data" and size == self.sketch.sites:
                self.emit(f"tp.mix(a, {v.name})", v, atoms=all_sites)
            case 6:
                matrix = [[1.0 + (i + j + step.b) % 3 for j in range(size)] for i in range(2)]
                self.emit(f"tp.mix(np.array({matrix}) / {2 * size}, {v.name})", v, sites=2, atoms=all_sites)
            case _:
                self.emit(f"tp.sum({v.name})", v, sites=0, atoms=all_sites)

    def conv(self, step: Step) -> None:
        """A convolution with a window of 2."""
        v = self.pick(step.a, lambda v: v.sites > 0)
        if v is None:
            return
        width, padding = self.width(step.b), ("SAME", "CIRCULAR", "VALID")[step.k % 3]
        if padding == "VALID" and v.sites < 2:
            return
        if step.k % 5 == 4 and padding == "SAME":
            text = f"weight({width}, {v.width}, window=(2,), sites=({v.sites},))"
            name = self.declare(f"L{width}{v.width}{v.sites}", text)
            self.emit(f'tp.conv_local({name}, {v.name}, padding="SAME")', v, width=width, gaussian=True)
            return
        name = self.declare(f"C{width}{v.width}", f"weight({width}, {v.width}, var=2.0, window=(2,))")
        sites = v.sites - (padding == "VALID")
        self.emit(f"tp.conv({name}, {v.name}, padding={padding!r})", v, width=width, sites=sites, gaussian=True)

    # ---- outputs

    def end(self, ends: Iterable[int]) -> None:
        """Readouts of the last vectors: at each site, of their mean, of all sites, with a bias of their own."""
        for index, k in enumerate(ends):
            v = self.pick(index)
            assert v is not None, "there is always a vector"
            text = v.name
            if v.sites and k % 4 == 2:
                name = self.declare(f"f{v.width}{v.sites}", f"weight(1, {v.width}, window=({v.sites},))")
                self.outputs.append(f'tp.conv({name}, {text}, padding="VALID")[0]')
                continue
            if v.sites and k % 4 == 0:
                text = f"tp.mean({text})"
            name = self.declare(f"v{v.width}", f"weight(1, {v.width})")
            end = f" + {self.declare('c', 'bias(1, var=0.1)')}" if k % 4 == 3 else ""
            self.outputs.append(f"{name} @ {text}{end}")


KINDS = (
    "nonlin", "matmul", "add", "layer", "nonlin", "bias", "read", "binary", "site", "norm", "moment", "scale", "conv",
    "layer", "site", "attend", "nonlin", "norm", "add", "layer",
)  # fmt: skip
"""Kinds of steps, those that come often more than once."""


def features(program: tp.Program) -> set[str]:
    """What a program has."""
    structure, has = program.structure, set()
    acting = [i for i in structure.instructions if isinstance(i, ir.MatMul)]
    weights = [structure.weights[i.weight] for i in acting]
    readers = Counter(p for i in structure.instructions for p in ir.operands(i))
    for name, found in {
        "tied": any(count > 1 for w, count in Counter(weights).items() if isinstance(w.rows, str)),
        "transposed": any(i.transposed for i in acting),
        "two widths": len({w.rows for w in weights if isinstance(w.rows, str)}) > 1,
        "window": any(w.window and isinstance(w.rows, str) for w in weights),
        "branch": any(readers[p] > 1 and is_wide(structure, p) for p in readers),
        "sites": any(t.sites for t in structure.types if isinstance(t, ir.VectorType) and t.space == "wide"),
        "bias": any(isinstance(b.dim, str) for b in structure.biases),
        "data": any(isinstance(i, ir.DataScalar) for i in structure.instructions),
        "several outputs": len(structure.outputs) > 1,
        "two inputs": sum(isinstance(i, ir.InputVector) for i in structure.instructions) > 1,
        "product": any(isinstance(i, ir.Nonlin) and len(i.vectors) > 1 for i in structure.instructions),
        "nonlinear": any(isinstance(i, ir.Nonlin) for i in structure.instructions),
        "Moment": any(isinstance(i, ir.Moment) for i in structure.instructions),
        "attention": any(isinstance(i, ir.Inner) for i in structure.instructions),
        "function of scalars": any(isinstance(i, ir.ScalarFn) for i in structure.instructions),
    }.items():
        has |= {name} if found else set()
    return has


def is_wide(structure: ir.Structure, position: int) -> bool:
    type_ = structure.types[position]
    return isinstance(type_, ir.VectorType) and type_.space == "wide"


def steps(kinds: tuple[str, ...]) -> st.SearchStrategy[Step]:
    last = st.sampled_from((0, 0, 0, 1, 1, 2, 3))
    return st.builds(Step, st.sampled_from(kinds), last, st.integers(0, 3), st.integers(0, 8))


def programs(most: int = 14, kinds: tuple[str, ...] = KINDS) -> st.SearchStrategy[Sketch]:
    """Programs of up to MOST instructions, from up to `most` steps of some kinds."""
    return st.builds(
        Sketch,
        st.sampled_from((0, 2, 2)),
        st.sampled_from(("", "data", "mask", "input")),
        st.sampled_from((0.0, 0.0, 0.0, 1.0, 0.5, 2.0)),
        st.sampled_from((0, 0, 0, 1, 1, 1, 2, 2, 2, 3)),
        st.lists(steps(kinds), min_size=1, max_size=most).map(tuple),
        st.lists(small_end(), min_size=1, max_size=2).map(tuple),
    )


def small_end() -> st.SearchStrategy[int]:
    return st.integers(0, 3)


def distinct(count: int, most: int = 14, kinds: tuple[str, ...] = KINDS, start: int = 0) -> list[Sketch]:
    """Sketches of so many different programs, the same each time for one start."""
    found: dict[object, Sketch] = {}
    while len(found) < count:

        @seed(start)
        @settings(max_examples=10, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=HEALTH)
        @given(programs(most, kinds))
        def gather(sketch: Sketch) -> None:
            found.setdefault(sketch.program.structure, sketch)

        gather()
        start += 100_000
    return list(found.values())[:count]
