"""The intermediate representation: a straight-line NETSOR⊤ program over wide vectors, random matrices and scalars.

A program is a tuple of *instructions*. An instruction's result is known by its position; operands are positions of
earlier instructions, so single assignment and acyclicity hold by construction (and `verify` checks them). Instructions
are a closed union of frozen dataclasses: an interpreter is one function with one `match` over `Instruction`.

Numbers (variances, learning rates, coefficients, arrays captured by the user's functions) are not in the structure:
the structure says *which* number stands where (`Num`), a `Program` carries their values as the leaves of a pytree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, assert_never

import jax.numpy as jnp
import numpy as np

from tensorprog.errors import Line, bad_argument
from tensorprog.functions.frozen import Function

Dim = str | int
"""A dimension: the name of a width that goes to infinity, or a fixed number of features or outputs."""

Sites = tuple[int, ...]


@dataclass(frozen=True)
class Num:
    """The program's number at a position of its leaves."""

    index: int


ScalarRef = Num | int
"""A scalar operand: a number of the program, or the position of a Moment or ScalarFn."""


@dataclass(frozen=True)
class Coef:
    """A coefficient: a constant of the structure times scalars."""

    constant: float = 1.0
    factors: tuple[ScalarRef, ...] = ()

    def __mul__(self, other: Coef) -> Coef:
        return Coef(self.constant * other.constant, self.factors + other.factors)

    @property
    def is_one(self) -> bool:
        return self.constant == 1.0 and not self.factors


@dataclass(frozen=True)
class IntArray:
    """A constant array of integers that can be hashed and compared."""

    shape: Sites
    data: bytes

    @staticmethod
    def of(array: np.ndarray) -> IntArray:
        array = np.asarray(array, dtype=np.int64, order="C")
        return IntArray(array.shape, array.tobytes())

    @property
    def array(self) -> np.ndarray:
        return np.frombuffer(self.data, dtype=np.int64).reshape(self.shape)


@dataclass(frozen=True)
class Taken:
    """A ScalarFn's function that rearranges entries, as a Gather does vectors; `text` prints it, {} for the operands.

    The entries of its arguments stand end to end; the result has at each place the entry that `source` names.
    """

    source: IntArray
    text: str = field(compare=False)

    def __call__(self, *arrays: Any) -> Any:
        return jnp.concatenate([jnp.ravel(a) for a in arrays])[self.source.array]


# ---------------------------------------------------------------------------------------------- declarations


@dataclass(frozen=True)
class Input:
    """One example of an input: fixed site axes, then features, `tp.Input(8, 16)`: 8 sites of 16 features each."""

    sites: Sites
    features: int

    def __init__(self, *shape: int):
        if not shape or not all(isinstance(s, int | np.integer) and not isinstance(s, bool) and s > 0 for s in shape):
            given = ", ".join(map(repr, shape))
            raise bad_argument(
                f"Input({given})", "no shape of one example", "write tp.Input(*sites, features), positive ints"
            )
        object.__setattr__(self, "sites", tuple(int(s) for s in shape[:-1]))
        object.__setattr__(self, "features", int(shape[-1]))

    @property
    def shape(self) -> Sites:
        return (*self.sites, self.features)


@dataclass(frozen=True)
class Data:
    """Per-example scalars with sites, `tp.Data(8, 8)`: masks, adjacency matrices; real, integer or bool."""

    sites: Sites

    def __init__(self, *shape: int):
        if not all(isinstance(s, int | np.integer) and not isinstance(s, bool) and s > 0 for s in shape):
            given = ", ".join(map(repr, shape))
            raise bad_argument(f"Data({given})", "no shape of one example", "write tp.Data(*shape), positive ints")
        object.__setattr__(self, "sites", tuple(int(s) for s in shape))

    @property
    def shape(self) -> Sites:
        return self.sites


@dataclass(frozen=True)
class Weight:
    """A random matrix with iid entries N(0, var/fan), fan = cols·∏window; one for each offset and each site."""

    name: str
    rows: Dim
    cols: Dim
    var: Num
    lr: Num
    scale: Num | None = None
    window: Sites = ()
    sites: Sites = ()


@dataclass(frozen=True)
class Bias:
    """A random vector with iid entries N(mean, var); a mean that is 0 in the structure is no number of the program."""

    name: str
    dim: Dim
    var: Num
    lr: Num
    mean: Num | None = None
    scale: Num | None = None
    sites: Sites = ()


Parameter = Weight | Bias


def rows(parameter: Parameter) -> Dim:
    """The dimension of what a parameter makes: a matrix's rows, a bias's own."""
    return parameter.dim if isinstance(parameter, Bias) else parameter.rows


def shape(parameter: Parameter) -> tuple[Dim, ...]:
    """(*sites, *window, rows, cols) of a matrix's array, (*sites, dim) of a bias's; widths by their names."""
    if isinstance(parameter, Bias):
        return (*parameter.sites, parameter.dim)
    return (*parameter.sites, *parameter.window, parameter.rows, parameter.cols)


def is_readout(parameter: Parameter) -> bool:
    """Whether a parameter has a fixed number of rows."""
    return isinstance(rows(parameter), int)


# ------------------------------------------------------------------------------------------------------ types


@dataclass(frozen=True)
class VectorType:
    """A vector at each site. `space` is "input" (features), "wide" (goes to infinity) or "output" (a readout)."""

    sites: Sites
    dim: Dim
    space: str


@dataclass(frozen=True)
class ScalarType:
    """A scalar at each site."""

    sites: Sites


Type = VectorType | ScalarType

# ----------------------------------------------------------------------------------------------- instructions

# Three kinds stand for their members in a `match` that does not tell them apart. A new instruction joins a kind where
# all that is true of the kind is true of it; every other `match` that lacks it is an error of the type checker.


class Leaf:
    """An instruction that reads no other."""


class SiteLinear:
    """A vector that is linear in its operands, the same combination of their sites at every coordinate."""


class ScalarResult:
    """A scalar made of earlier instructions."""


@dataclass(frozen=True)
class InputVector(Leaf):
    """The vector of features of an input."""

    input: int


@dataclass(frozen=True)
class DataScalar(Leaf):
    """Per-example data as a scalar: the input at that place is a `Data`."""

    input: int


@dataclass(frozen=True)
class BiasVector(Leaf):
    """A bias as an initial vector."""

    bias: int


@dataclass(frozen=True)
class MatMul:
    """y = A x with A = W or Wᵀ at each site, times (rows of A / cols of A)^(aspect/2).

    A weight with a window reads x over sites (…, *S, *window), y[…, s] = Σ_o W[o] x[…, s, o] over (…, *S), S its own
    sites (one matrix for each, W[s, o]) or none; its transpose goes from (…, *S) to (…, *S, *window). A convolution is
    such a product of the patches of x.

    The aspect is 0 in what users write. In backward passes it keeps entries of one size whatever the widths are, and
    makes the transpose of a readout, √n vᵀ, an initial vector: the readout's entries, which `entries` is by itself.
    """

    weight: int
    x: int
    transposed: bool = False
    aspect: int = 0


@dataclass(frozen=True)
class LinComb(SiteLinear):
    """y = Σ coef·x + Σ coef·1; sites broadcast as in NumPy. Without terms it is a constant vector."""

    terms: tuple[tuple[Coef, int], ...]
    constants: tuple[Coef, ...] = ()


@dataclass(frozen=True)
class Gather(SiteLinear):
    """y[site] = the vector at place `source[site]` of the operands' sites, laid end to end: index, stack, pad …

    Place -1 is the zero vector.
    """

    xs: tuple[int, ...]
    source: IntArray
    text: str = field(compare=False)


@dataclass(frozen=True)
class SiteSum(SiteLinear):
    """y = Σ of x over site axes."""

    x: int
    axes: tuple[int, ...]


@dataclass(frozen=True)
class Nonlin:
    """y_α = fn(x¹_α, …, xᵏ_α; θ…) at each site; with `over`, fn sees those site axes whole."""

    fn: Function
    numbers: tuple[Num, ...]
    vectors: tuple[int, ...]
    scalars: tuple[ScalarRef, ...] = ()
    over: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Moment(ScalarResult):
    """θ = (1/n) Σ_α fn(x¹_α, …, xᵏ_α; θ…) at each site."""

    fn: Function
    numbers: tuple[Num, ...]
    vectors: tuple[int, ...]
    scalars: tuple[ScalarRef, ...] = ()


@dataclass(frozen=True)
class Inner(ScalarResult):
    """S[h, i, j] = (1/n) Σ_α x[h, i]_α y[h, j]_α for all pairs of sites; of inputs, over their features.

    The first `shared` site axes, h, run together and are the same of both.
    """

    x: int
    y: int
    shared: int = 0


@dataclass(frozen=True)
class ScalarFn(ScalarResult):
    """θ = fn(θ¹, …), fn sees the whole arrays."""

    fn: Function
    numbers: tuple[Num, ...]
    scalars: tuple[ScalarRef, ...]


Instruction = (
    InputVector | DataScalar | BiasVector | MatMul | LinComb | Gather | SiteSum | Nonlin | Moment | Inner | ScalarFn
)


def is_entries(structure: Structure, position: int) -> bool:
    """Whether an instruction is √n vᵀ of a readout v, an initial vector."""
    instruction = structure.instructions[position]
    if not isinstance(instruction, MatMul) or not instruction.transposed or instruction.aspect != 1:
        return False
    ones = structure.instructions[instruction.x]
    ones = structure.instructions[ones.xs[0]] if isinstance(ones, Gather) else ones  # at each of the readout's sites
    return ones == LinComb((), (Coef(),)) and isinstance(structure.weights[instruction.weight].rows, int)


def operands(instruction: Instruction) -> Iterator[int]:
    """Positions of the instructions that an instruction reads, vectors and scalars."""
    match instruction:
        case InputVector() | DataScalar() | BiasVector():
            return
        case MatMul(x=x) | SiteSum(x=x):
            yield x
        case LinComb(terms=terms, constants=constants):
            yield from (x for _, x in terms)
            coefs = (*(coef for coef, _ in terms), *constants)
            yield from (f for coef in coefs for f in coef.factors if isinstance(f, int))
        case Gather(xs=xs):
            yield from xs
        case Inner(x=x, y=y):
            yield from (x, y)
        case Nonlin(vectors=vectors, scalars=scalars) | Moment(vectors=vectors, scalars=scalars):
            yield from vectors
            yield from (s for s in scalars if isinstance(s, int))
        case ScalarFn(scalars=scalars):
            yield from (s for s in scalars if isinstance(s, int))
        case never:
            assert_never(never)


# -------------------------------------------------------------------------------------------------- structure


@dataclass(frozen=True)
class Lines:
    """Source lines by instruction and by parameter name; carried with the structure, never compared."""

    instructions: tuple[Line | None, ...] = ()
    parameters: tuple[tuple[str, Line | None], ...] = ()

    def parameter(self, name: str) -> Line | None:
        return dict(self.parameters).get(name)


@dataclass(frozen=True)
class Structure:
    """Everything static of a program: hashable, equal for equal programs."""

    name: str
    inputs: tuple[Input | Data, ...]
    input_names: tuple[str, ...]
    widths: tuple[tuple[str, Num], ...]
    weights: tuple[Weight, ...]
    biases: tuple[Bias, ...]
    instructions: tuple[Instruction, ...]
    types: tuple[Type, ...]
    names: tuple[str | None, ...]
    outputs: tuple[int, ...]
    single: bool
    numbers: tuple[str, ...]
    number_sites: tuple[Sites, ...]
    lines: Lines = field(compare=False)

    @cached_property
    def _hash(self) -> int:
        # A program of a thousand instructions is a key of many caches: its hash is taken once.
        return hash(tuple(getattr(self, f.name) for f in fields(self) if f.compare))

    def __hash__(self) -> int:
        return self._hash

    def scalar_sites(self, ref: ScalarRef) -> Sites:
        """The sites of a scalar operand."""
        return self.number_sites[ref.index] if isinstance(ref, Num) else self.types[ref].sites

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (*self.weights, *self.biases)

    def position(self, name: str) -> int | None:
        """The position of the instruction with a printed name."""
        return self.names.index(name) if name in self.names else None

    def line(self, position: int) -> Line | None:
        return self.lines.instructions[position] if position < len(self.lines.instructions) else None

    def vector(self, position: int) -> VectorType:
        type_ = self.types[position]
        assert isinstance(type_, VectorType), f"instruction {position} is a scalar where a vector is needed"
        return type_


def fan(weight: Weight) -> int:
    """∏window · cols for a matrix that reads a fixed number of features; ∏window when cols is a width."""
    size = math.prod(weight.window)
    return size * weight.cols if isinstance(weight.cols, int) else size


def verify(structure: Structure) -> None:
    """Single assignment: every operand stands before the instruction that reads it, and every tuple has its length."""
    count = len(structure.instructions)
    assert len(structure.types) == len(structure.names) == count, "types and names go with instructions"
    for position, instruction in enumerate(structure.instructions):
        for operand in operands(instruction):
            assert operand < position, f"instruction {position} reads {operand}, which is not before it"
    assert all(output < count for output in structure.outputs), "an output is not an instruction"
