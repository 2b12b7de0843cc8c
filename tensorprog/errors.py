"""The one exception of the library and its one warning, and how their texts are put together.

A user's mistake is a `ProgramError`: where it stands (file:line), the instruction as it would be printed, why it cannot
be, and what to write instead. A broken invariant of our own is an `assert` with words.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass


class ProgramError(Exception):
    """What the user wrote cannot be a tensor program, or cannot be computed; the text says what to write instead."""


class NotIntegrated(ProgramError):
    """An expectation that the recursion has no rule for: more Gaussians at once than it integrates."""


class KernelWarning(UserWarning):
    """Numbers that deserve a second look: an expectation integrated to few digits, a kernel that is close to singular,
    a training that diverges."""


@dataclass(frozen=True)
class Line:
    """A line of the user's source."""

    file: str
    number: int

    def __str__(self) -> str:
        return f"{self.file.rsplit('/', 1)[-1]}:{self.number}"


def problem(
    line: Line | None, instruction: str, why: str, remedy: str, kind: type[ProgramError] = ProgramError
) -> ProgramError:
    """A ProgramError at a line of the user's: the instruction, why it is refused, what to write instead."""
    return kind(located(line or "in the program", instruction, why, remedy))


def located(line: Line | str, instruction: str, why: str, remedy: str) -> str:
    """What errors and warnings say of a line, or of what stands for one."""
    where = line if isinstance(line, str) else f"{line.file}:{line.number}"
    return f"{where}: {instruction}\n  {why}\n  {remedy}"


def bad_argument(argument: str, why: str, remedy: str) -> ProgramError:
    """A ProgramError about an argument of a public function."""
    return ProgramError(f"{argument}: {why}; {remedy}")


def warn(told: str) -> None:
    """A KernelWarning at the caller's first line outside of the library."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == __name__.split(".")[0]:
        frame, level = frame.f_back, level + 1
    warnings.warn(told, KernelWarning, stacklevel=level + 1)
