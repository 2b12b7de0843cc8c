"""Which program an estimator means, and its kernels on flat data, each computed once."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any, NamedTuple

import jax
import numpy as np

from tensorprog.errors import ProgramError
from tensorprog.interpret.system import integrated, kernel_structure, output_targets
from tensorprog.ir import Input
from tensorprog.kernel import kernels, nngp
from tensorprog.nets import NETS, net
from tensorprog.program import Program
from tensorprog.tracing.run import trace

Source = str | Program | Callable[..., Any]
"""A zoo name, a program, or a function on traced values."""

#: What images a net of the zoo reads, in words.
READS = {"rows": "rows, input_shape=(8, 8) say", "pixels": "pixels, input_shape=(8, 8) or (8, 8, 1) say"}


class InvalidParameter(ProgramError, ValueError):
    """A parameter of an estimator that cannot be: a ValueError, as scikit-learn's users expect."""


def invalid(argument: str, why: str, remedy: str) -> InvalidParameter:
    return InvalidParameter(f"{argument}: {why}; {remedy}")


@contextmanager
def value_errors() -> Iterator[None]:
    """What programs and kernels refuse, as a ValueError."""
    try:
        yield
    except InvalidParameter:
        raise
    except ProgramError as error:
        raise InvalidParameter(str(error)) from error


def program_for(
    source: Source, input_shape: tuple[int, ...] | None, keywords: Mapping[str, Any] | None, features: int
) -> Program:
    """The program for data of so many features: a zoo net or a function traced for `input_shape`, or a program.

    Zoo nets that read pixels take images without channels too. Without `input_shape` an example is a list of features.

    **Raises:** `InvalidParameter`, a ValueError, for what is none of these, and a shape that does not fit.
    """
    given = dict(keywords or {})
    if isinstance(source, Program):
        if given or input_shape is not None:
            raise invalid(
                "program", "it is traced already, for a shape and with keywords of its own", "leave these out"
            )
        _check_inputs(source)
        _check_size(source.structure.inputs[0].shape, features)
        return source
    if isinstance(source, str):
        if source not in NETS:
            raise invalid(
                "program", f"{source!r} is no net of the zoo", f"give one of {', '.join(NETS)}, or a function"
            )
        fn, given, image = net(source).fn, {**net(source).keywords, **given}, net(source).image
        if len(net(source).inputs) > 1 or image not in ("flat", *READS):
            raise invalid("program", f"{source} reads {image}, no rows of numbers", "give another net")
    elif callable(source):
        fn, image = source, "flat"
    else:
        raise invalid("program", f"{source!r} is no program", "give a name of the zoo, a function or a Program")
    if input_shape is None and image != "flat":
        raise invalid(
            "input_shape", f"{source} reads images, and X is flat", f"say how to cut it: it reads {READS[image]}"
        )
    shape = (features,) if input_shape is None else tuple(int(size) for size in np.atleast_1d(input_shape))
    if image == "pixels" and len(shape) == 2:
        shape = (*shape, 1)
    if image == "flat" and isinstance(source, str):
        shape = (math.prod(shape),)
    _check_size(shape, features)
    _check_keywords(fn, given)
    program = trace(fn, Input(*shape), **given)
    _check_inputs(program)
    return program


def _check_inputs(program: Program) -> None:
    structure = program.structure
    if len(structure.inputs) != 1 or not isinstance(structure.inputs[0], Input):
        raise invalid("program", f"it has {len(structure.inputs)} inputs", "estimators take programs of one tp.Input")
    sites = getattr(structure.types[structure.outputs[0]], "sites", ())
    if not structure.single or sites:
        raise invalid("program", "it returns more than one number an example", "give one readout, without sites")


def _check_size(shape: tuple[int, ...], features: int) -> None:
    if math.prod(shape) != features:
        raise invalid(
            "input_shape", f"{shape} takes {math.prod(shape)} features, X has {features}", "give X's own shape"
        )


def _check_keywords(fn: Callable[..., Any], keywords: Mapping[str, Any]) -> None:
    parameters = inspect.signature(fn).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name in keywords:
        if name not in parameters:
            known = ", ".join(p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY) or "none"
            raise invalid("keywords", f"{name!r} is none of the program's", f"its keywords are {known}")


# ------------------------------------------------------------------------------------------------------- kernels


class Cache:
    """Kernels by program and data, the oldest forgotten beyond so many bytes: a ridge search asks for the same ones."""

    def __init__(self, limit: int) -> None:
        self.limit, self.lock = limit, Lock()
        self.found: OrderedDict[Any, dict[str, np.ndarray]] = OrderedDict()

    def get(self, key: Any, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        with self.lock:
            if key in self.found:
                self.found.move_to_end(key)
                return self.found[key]
        value = compute()
        with self.lock:
            self.found[key] = value
            while len(self.found) > 1 and sum(map(_bytes, self.found.values())) > self.limit:
                self.found.popitem(last=False)
        return value


def _bytes(arrays: dict[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays.values())


#: One for the process, as `GridSearchCV` makes a new estimator for each candidate.
KERNELS = Cache(2**29)


def kernel_blocks(
    program: Program, x: np.ndarray, test: np.ndarray | None = None, *, what: str
) -> dict[str, np.ndarray]:
    """Kernels by name of examples (N, features) with themselves, or of test with training examples, in float64.

    `what` is "nngp" for it alone, "ntk" for both. Sampled kernels (gru, …) are of one draw only within a call: what is
    used together is `joint_blocks`.
    """
    leaves = tuple((np.asarray(leaf).tobytes(), np.shape(leaf)) for leaf in program.leaves)
    key = (program.structure, leaves, digest(x), None if test is None else digest(test), what)
    return KERNELS.get(key, lambda: _kernels(program, x, test, what))


def _kernels(program: Program, x: np.ndarray, test: np.ndarray | None, what: str) -> dict[str, np.ndarray]:
    shape = program.structure.inputs[0].shape
    first = np.asarray(x if test is None else test, np.float64)
    second = None if test is None else np.asarray(x, np.float64)
    cut = lambda a: None if a is None else a.reshape(len(a), *shape)
    with jax.enable_x64(True):
        if what == "nngp":
            found = {"nngp": nngp(program, cut(first), cut(second))}
        else:
            both = kernels(program, cut(first), cut(second))
            found = {"nngp": both.nngp, "ntk": both.ntk}
        arrays = {name: np.asarray(kernel, np.float64) for name, kernel in found.items()}
    for array in arrays.values():
        array.setflags(write=False)  # it is shared
    return arrays


class Joint(NamedTuple):
    """Kernels by name of training examples (N, N), of test with training examples (N*, N), NNGP variances (N*,)."""

    train: dict[str, np.ndarray]
    cross: dict[str, np.ndarray]
    prior: np.ndarray


def joint_blocks(program: Program, x: np.ndarray, test: np.ndarray, *, what: str) -> Joint:
    """All kernels that a prediction takes; sampled ones from one call, so of one draw."""
    if not is_sampled(program):
        train, cross = kernel_blocks(program, x, what=what), kernel_blocks(program, x, test, what=what)
        return Joint(train, cross, prior_variances(program, test))
    both, n = kernel_blocks(program, np.concatenate([x, test]), what=what), len(x)
    train, cross = ({name: k[rows, :n] for name, k in both.items()} for rows in (slice(n), slice(n, None)))
    return Joint(train, cross, np.diagonal(both["nngp"])[n:])


def prior_variances(program: Program, x: np.ndarray, kind: str = "nngp", chunk: int = 64) -> np.ndarray:
    """A kernel of each example with itself, (N,), by diagonal blocks."""
    parts = [x[start : start + chunk] for start in range(0, len(x), chunk)]
    return np.concatenate([np.diagonal(_kernels(program, part, None, kind)[kind]) for part in parts])


def is_sampled(program: Program) -> bool:
    structure = kernel_structure(program, "kernels")
    return not integrated(structure, output_targets(structure))


def digest(x: np.ndarray) -> bytes:
    """What tells arrays apart by content and shape."""
    x = np.ascontiguousarray(x, np.float64)
    return hashlib.blake2b(x.tobytes(), person=str(x.shape).encode()[:16]).digest()
