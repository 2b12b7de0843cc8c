"""Training as a program: steps of gradient descent unrolled, in the parameterization whose limit learns features.

A trained weight is W − Σ rate · dy zᵀ/m over the uses y = W z of all steps so far, so that a product with it is the
initial W's product and terms with inner products, which are Moments: a NETSOR⊤+ program again. No architecture is
known here, only `backward`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, assert_never

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.batch import require_program
from tensorprog.errors import bad_argument, problem
from tensorprog.functions.frozen import Function
from tensorprog.functions.pullback import slope
from tensorprog.gia import reached
from tensorprog.ir import (
    BiasVector,
    Coef,
    DataScalar,
    InputVector,
    MatMul,
    Nonlin,
    Num,
    Parameter,
    ScalarResult,
    ScalarType,
    SiteLinear,
    Structure,
    is_entries,
    verify,
)
from tensorprog.program import Program
from tensorprog.tracing.builder import Builder, user_line
from tensorprog.tracing.calls import take
from tensorprog.tracing.run import read_inputs
from tensorprog.tracing.values import Scalar, Vector, gather
from tensorprog.transform.backward import AVERAGE, Backward, summed
from tensorprog.transform.batching import together
from tensorprog.transform.replay import Operator, Replay, inner_product, reshaped, scalar_fn


class Trained(Operator):
    """A weight after some steps: W₀ + Σ rate · left rightᵀ / m."""

    def __init__(self, builder: Builder, index: int):
        super().__init__(builder, index)
        self.left: list[Vector] = []
        self.right: list[Vector] = []

    def updated(self, left: Vector, right: Vector) -> None:
        """One more term; `left` carries the rate."""
        self.left.append(self.laid(left, windows=False))
        self.right.append(self.laid(right, windows=True))

    def laid(self, x: Vector, windows: bool) -> Vector:
        """A vector over one axis of uses; with windows or own sites over (uses, places) or (uses, places, offsets)."""
        weight = self.builder.weights[self.index]
        window = weight.window if windows else ()
        count = math.prod(x.sites) // math.prod(weight.sites) // math.prod(window)
        if not weight.window and not weight.sites:
            return reshaped(x, (count,))
        own = (math.prod(weight.sites), math.prod(window))[: 1 + windows]
        return reshaped(x, (count, *own))

    def product(self, x: Vector, transposed: bool, aspect: int = 0) -> Vector:
        weight = self.builder.weights[self.index]
        first = super().product(x, transposed, aspect)
        if not self.left:
            return first
        # ΔWᵀ dy times m/n, as a backward pass has it, is Σ rate · right (left · dy)/n; other pairs need m = n.
        assert weight.rows == weight.cols or aspect == AVERAGE * transposed, "refused when the step was written"
        across, along = (self.right, self.left) if transposed else (self.left, self.right)
        moved = combined if not weight.window and not weight.sites else combined_over_windows
        flat = self.laid(x, windows=not transposed)
        return first + reshaped(moved(joined(across), joined(along), flat), first.sites)


def _end_to_end(*sources: np.ndarray) -> np.ndarray:
    return np.concatenate(sources)


def joined(parts: list[Vector]) -> Vector:
    """Vectors of sites (I,) laid end to end."""
    return parts[0] if len(parts) == 1 else gather(parts, _end_to_end, "concat({})")


def combined(across: Vector, along: Vector, x: Vector) -> Vector:
    """y[j] = Σ_i across[i] ⟨along[i], x[j]⟩/n."""
    column = reshaped(across, (*across.sites, 1))
    return summed(column * inner_product(along, x), (0,))


def combined_over_windows(across: Vector, along: Vector, x: Vector) -> Vector:
    """y[j, p] = Σ_i across[i, p] · mean_o ⟨along[i, p, o], x[j, p, o]⟩/n, for a matrix at each place p and offset o.

    Where it is `across` that has offsets, the transposed product, y[j, p, o] has them and the mean is 1/offsets.
    """
    if len(across.sites) == 3:
        pairs = scalar_fn(x.builder, partial(matched, count=across.sites[2]), inner_product(along, x))
        column = reshaped(across, (across.sites[0], 1, *across.sites[1:]))
    else:
        pairs = scalar_fn(x.builder, windows_matched, inner_product(along, x))
        column = reshaped(across, (across.sites[0], 1, across.sites[1]))
    return summed(column * pairs, (0,))


def matched(pairs: Any, count: int) -> Any:
    """(I, P, J, P) -> (I, J, P, 1), divided by `count`."""
    return jnp.einsum("ipjp->ijp", pairs)[..., None] / count


def windows_matched(pairs: Any) -> Any:
    """(I, P, O, J, P, O) -> (I, J, P), the mean over O."""
    return jnp.einsum("ipojpo->ijp", pairs) / pairs.shape[2]


def sgd_step(
    program: Program,
    loss: Callable[..., Any] | Sequence[Callable[..., Any]],
    lr: Any,
    steps: int = 1,
    *,
    batch: int | None = None,
    test: int = 0,
) -> Program:
    """Full-batch gradient descent as a program: its outputs after 0, 1, …, `steps` steps, and the loss.

    The output f must be a Moment (a mean-field readout, (1/n) Σ v_α h_α with v = `tp.bias`). Each trained θ moves by
    −lr·n·lr_p·∂loss/∂θ, n the width of its rows. In entries: W (n × m) by −lr·var·dy zᵀ/m, a weight of d features by
    −lr·var·dy ξᵀ/d, a bias or mean-field readout by −lr·var·dy, where dy = n ∂loss/∂y: learning rates of order n, 1 and
    n for input-like, hidden and readout-like parameters of entries of order 1, 1/√n and 1, which is µP.

    **Arguments:** loss: a function of the output's whole array that returns one number, or one for each step. lr: the
    learning rate, or one for each step. `batch`: the program is written for one example, and trained on so many (the
    new leading site axis); `test` further inputs are evaluated after each step. Without `batch` the program's first
    output is trained, its sites are the batch, and other outputs are evaluated.

    **Returns:** a program whose inputs are the batch (batch, *sites, features) and, with `test`, the test inputs; its
    outputs are (training outputs (steps + 1, batch, …), other or test outputs (steps + 1, …), losses (steps + 1,)).
    `limit` gives their infinite-width limit, `apply` the same training at a finite width, exactly.

    **Raises:** `ProgramError` for outputs that are no Moments, a loss that is no function of the output, steps < 1.

    Source: Tensor Programs IV (2011.14522), section 6 and appendix.
    """
    structure = require_program(program, "sgd_step").structure
    _check(structure, steps, batch, test)
    runs = [program] if batch is None else [_batched(program, n) for n in (batch, test) if n]
    first = runs[0].structure
    inputs = tuple(i for run in runs for i in run.structure.inputs)
    names = [*structure.input_names, *(f"{name}*" for name in structure.input_names if len(runs) > 1)]
    builder = Builder.like(first, program.leaves, inputs, names)
    builder.at = user_line(outside_package=True)
    training = _Training(builder, runs, loss, lr, steps)
    outputs = training.run()
    made = builder.structure(outputs, False)
    verify(made)
    return Program(made, tuple(builder.values))


def _batched(program: Program, size: int) -> Program:
    return together(program, size, program.structure.outputs).program


def _check(structure: Structure, steps: Any, batch: Any, test: Any) -> None:
    """The arguments, and what training can be written for."""
    for name, value, least in (("steps", steps, 1), ("batch", batch, 1), ("test", test, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least):
            raise bad_argument(name, f"{value!r} is no number of {name}", f"give an int ≥ {least}")
    if test and batch is None:
        raise bad_argument(
            "test", "the program itself says what its inputs are", "give batch= too, or return the test outputs as well"
        )
    if batch is not None and not structure.inputs:
        raise bad_argument("batch", "the program has no inputs to make a batch of", "leave it out")
    output = structure.outputs[0]
    if not isinstance(structure.types[output], ScalarType):
        raise problem(
            structure.line(output), structure.names[output] or "the trained output",
            "the output is no Moment: under a readout v @ x / √n features do not move, and training is the NTK's",
            "return tp.moment(lambda v, h: v * h, v, h) with v = tp.bias('v', n), or use tp.ntk",
        )  # fmt: skip
    for position in reached(structure, structure.outputs):
        instruction = structure.instructions[position]
        if isinstance(instruction, MatMul) and instruction.transposed:
            weight = structure.weights[instruction.weight]
            if is_entries(structure, position):
                raise problem(
                    structure.line(position), f"entries({weight.name})",
                    "steps of a readout whose entries are a vector too are written for the vector alone",
                    f"declare it as the vector, {weight.name} = tp.bias({weight.name!r}, n)",
                )  # fmt: skip
            if weight.rows != weight.cols:
                raise problem(
                    structure.line(position), f"{weight.name}ᵀ between widths {weight.cols} and {weight.rows}",
                    "steps of a weight that also acts transposed are written for one width",
                    "give both dimensions the same tp.Width",
                )  # fmt: skip


class _Training:
    """The unrolled steps, written into a builder."""

    def __init__(self, builder: Builder, runs: list[Program], loss: Any, lr: Any, steps: int):
        self.builder, self.steps = builder, steps
        self.structures = [run.structure for run in runs]
        self.inputs = self._divided(read_inputs(builder))
        self.operators = {i: Trained(builder, i) for i in range(len(builder.weights))}
        self.biases: dict[int, Vector] = {}
        self.rates = self._rates(lr)
        self.losses = self._losses(loss)

    def _divided(self, inputs: list[Any]) -> list[list[Any]]:
        count = len(inputs) // len(self.structures)
        return [inputs[k * count : (k + 1) * count] for k in range(len(self.structures))]

    def _rates(self, lr: Any) -> list[Num]:
        """The learning rate of each step, a number of the program."""
        if isinstance(lr, Sequence) or np.ndim(lr) == 1:
            if len(lr) != self.steps:
                raise bad_argument("lr", f"{len(lr)} learning rates for {self.steps} steps", "give one for each step")
            return [self.builder.number(f"step{t}.lr", value) for t, value in enumerate(lr)]
        return [self.builder.number("step.lr", lr)] * self.steps

    def _losses(self, loss: Any) -> list[tuple[Function, tuple[Num, ...]]]:
        """The loss of each step as a frozen function of the output's array."""
        several = isinstance(loss, tuple | list)
        given = list(loss) if several else [loss] * self.steps
        if len(given) != self.steps:
            raise bad_argument("loss", f"{len(given)} losses for {self.steps} steps", "give one for each step")
        sites = self.structures[0].types[self.structures[0].outputs[0]].sites
        found: list[tuple[Function, tuple[Num, ...]]] = []
        for k, fn in enumerate(given):
            if not callable(fn):
                raise bad_argument("loss", f"{fn!r} is no function", "give a function of the output's array")
            if k and fn is given[k - 1]:
                found.append(found[-1])
                continue
            try:
                shape = jax.eval_shape(fn, jax.ShapeDtypeStruct(sites, jnp.result_type(float)))
            except Exception as error:
                told = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                raise bad_argument(
                    "loss", f"it is no function of the output, an array of shape {sites} ({told})",
                    "give a JAX function of one array that returns one number; targets may be in its closure",
                ) from None  # fmt: skip
            if getattr(shape, "shape", None) != ():
                raise bad_argument("loss", f"it returns {shape}, not one number", "sum or average over the batch")
            found.append(take(self.builder, fn, "the loss"))
        return found

    def run(self) -> tuple[int, ...]:
        traces: list[list[Scalar]] = []
        losses: list[Scalar] = []
        for t in range(self.steps + 1):
            replays = [self._forward(k, t) for k in range(len(self.structures))]
            outputs = [r.values[o] for r in replays for o in r.structure.outputs]
            traces.append([self._scalar(o, r) for o, r in zip(outputs, self._owners(replays), strict=True)])
            fn, numbers = self.losses[min(t, self.steps - 1)]
            losses.append(scalar_fn(self.builder, fn, traces[-1][0], numbers=numbers))
            if t < self.steps:
                self._step(replays[0], traces[-1][0], t)
        ends = [self._stacked(list(column), f"f{k + 1}") for k, column in enumerate(zip(*traces, strict=True))]
        return (*ends, self._stacked(losses, "loss"))

    def _owners(self, replays: list[Replay]) -> list[Replay]:
        return [r for r in replays for _ in r.structure.outputs]

    def _scalar(self, value: Any, replay: Replay) -> Scalar:
        if not isinstance(value, Scalar):
            raise problem(
                None, "an output beside the trained one", "it is no Moment, and has no limit to record",
                "return scalars only",
            )  # fmt: skip
        return value

    def _forward(self, k: int, t: int) -> Replay:
        structure = self.structures[k]
        replay = Replay(
            structure, self.builder, self.inputs[k], self.operators,
            suffix=f"{'*' * k}.{t}", biases=self.biases,
        )  # fmt: skip
        replay.run(reached(structure, structure.outputs))
        return replay

    def _step(self, replay: Replay, output: Scalar, t: int) -> None:
        """The gradient of the loss, and what it adds to each parameter."""
        structure, (fn, numbers) = replay.structure, self.losses[t]
        error = scalar_fn(self.builder, slope(fn, 0, 1), output, numbers=numbers)
        found = Backward(replay, {structure.outputs[0]: error}, AVERAGE).run()
        updates: list[tuple[int, Vector, Vector]] = []
        moved: dict[int, Vector] = {}
        for position in reached(structure, structure.outputs[:1]):
            if position not in found:
                continue
            dy = found[position]
            match structure.instructions[position]:
                case MatMul(weight=weight, x=x, transposed=transposed):
                    rate = self._rate(self.builder.weights[weight], t)
                    left, right = (replay.values[x], dy) if transposed else (dy, replay.values[x])
                    updates.append((weight, left * rate, right))
                case BiasVector(bias=bias):
                    moved[bias] = replay.values[position] + dy * self._rate(self.builder.biases[bias], t)
                case InputVector() | DataScalar() | SiteLinear() | Nonlin() | ScalarResult():
                    pass
                case never:
                    assert_never(never)
        for weight, left, right in updates:
            self.operators[weight].updated(left, right)
        self.biases.update(moved)

    def _rate(self, parameter: Parameter, t: int) -> Scalar:
        """−lr·lr_p·scale², what the entries of a parameter move by for a gradient of its entries."""
        scale = (parameter.var,) if parameter.scale is None else (parameter.scale, parameter.scale)
        return Scalar(self.builder, Coef(-1.0, (self.rates[t], parameter.lr, *scale)), ())

    def _stacked(self, parts: list[Scalar], name: str) -> int:
        ref = scalar_fn(self.builder, stacked, *parts).ref()
        assert isinstance(ref, int), "a function of scalars is an instruction"
        if self.builder.names[ref] is None and name not in self.builder.names:
            self.builder.names[ref] = name
        return ref


def stacked(*parts: Any) -> Any:
    """Scalars along a new first axis; prints by this name."""
    return jnp.stack(parts)
