"""What the benchmarks share: clocks, Markdown tables, and results kept while a long command runs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tensorprog.gia import forward_transposes
from tensorprog.interpret.system import integrated, kernel_structure, output_targets
from tensorprog.program import Program

KEPT = Path(__file__).parent / ".kept"


@dataclass(frozen=True)
class Time:
    """Seconds of the clock, and of all cores for this process: what others' work on the machine does not change."""

    wall: float
    cpu: float


def timed(fn: Callable[[], Any]) -> tuple[Any, Time]:
    """What fn returns, computed to the end, and the time it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = jax.block_until_ready(fn())
    return value, Time(time.perf_counter() - wall, time.process_time() - cpu)


def relative(error: Any, kernel: Any) -> float:
    """‖error‖/‖kernel‖ in the Frobenius norm."""
    return float(np.linalg.norm(np.ravel(error)) / np.linalg.norm(np.ravel(kernel)))


def is_refused(program: Program) -> bool:
    """Whether the recursion has no kernels for it, W and Wᵀ both acting forward: the backward program has."""
    return bool(forward_transposes(program.structure))


def is_sampled(program: Program) -> bool:
    """Whether its kernels are estimated from samples."""
    structure = kernel_structure(program, "kernels")
    return not integrated(structure, output_targets(structure))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first to the right."""
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *[list(row) for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """What the figures were measured on, in words."""
    return f"{os.cpu_count()} cores, {jax.devices()[0].platform}, JAX {jax.__version__}"


class Kept:
    """Results by name in a JSON file until the command has finished: an interrupted one goes on where it was.

    `settings` stand in the file: results under other settings are not taken up. `path=None` keeps nothing.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"settings": json.loads(json.dumps(settings)), "results": {}}
        if path is not None and path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["settings"] == self.content["settings"]:
                self.content = found

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """The kept result, or the computed one, which must be of JSON's types."""
        results = self.content["results"]
        if name not in results:
            results[name] = compute()
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                half = self.path.with_suffix(".half")
                half.write_text(json.dumps(self.content), encoding="utf-8")
                half.replace(self.path)  # whole or not at all
        return results[name]

    def done(self) -> None:
        """The command has finished: the next one starts anew."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
