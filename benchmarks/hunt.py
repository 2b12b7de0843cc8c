"""Hunting for wrong numbers: random functions and programs against truths that were computed apart from the library.

    python benchmarks/hunt.py [--kinds two jumps] [--count 100] [--workers 2] [--out docs/hunt.md]

Each case of `benchmarks/data/hunt.json` (made by `hunt_cases.py`) is asked for and judged:

- **right**: within the stated error, and a part of the natural scale √(K(x, x) K(x̄, x̄)) that the dtype leaves: 1e-6 in
  float64, 1e-4 in float32. Limits called "exact" are within 1e-9 (1e-5), draws within 4.5 of their standard errors. A
  refusal is right where the expectation does not exist.
- **warned**: a warning, or a bound wider than 1e-2 of the scale (draws: 0.2), that covers what is off;
- **refused**: a refusal, or a bound larger than the scale, where the expectation exists;
- **wrong**: off by more than was said, any number where none exists, or an exception that is no `ProgramError`.

Batches of 25 run in a process of their own, most of XLA's optimizations left out, since they compile more than they
compute. Results are kept as they come: an interrupted command goes on where it was (`--again` starts anew).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import report
from hunt_cases import PATH, load
from hunt_kernels import Case

import tensorprog as tp
from tensorprog.errors import KernelWarning

BATCH = 25
PATIENCE = 1800
"""Seconds a case may take on a busy machine; a process that takes longer for one is ended."""
PART = {"float64": 1e-6, "float32": 1e-4}
EXACT = {"float64": 1e-9, "float32": 1e-5}
DEVIATIONS = 4.5
WIDE, WIDE_DRAWS = 1e-2, 0.2
SAMPLES = 2**13
VERDICTS = ("right", "warned", "refused", "wrong")
NAMES = {
    name: getattr(jnp, name)
    for name in ("tanh", "sin", "cos", "exp", "sinh", "arctan", "sqrt", "log", "abs", "sign", "floor", "round",
                 "maximum", "where")
} | {
    "erf": jax.scipy.special.erf, "sigmoid": jax.nn.sigmoid, "softplus": jax.nn.softplus, "relu": jax.nn.relu,
    "hat": lambda z: jnp.clip(z, -1.0, 1.0),
}  # fmt: skip


@dataclass
class Verdict:
    """How a case came out: `off` in units of what is allowed, and what was said or found."""

    name: str
    verdict: str
    off: float
    said: str
    seconds: float


# ---- the case as a user writes it


def function(source: str, count: int = 1) -> Callable[..., Any]:
    return eval(f"lambda {', '.join('abc'[:count])}: {source}", dict(NAMES))


def program(case: Case) -> tp.Program:
    """The case's program, traced."""

    def chain(x: Any) -> Any:
        n = tp.Width("n")
        s, before = x, None
        for k, (source, var) in enumerate(zip(case.functions, case.variances, strict=True)):
            g = tp.weight(f"W{k}", n, x.features if k == 0 else n, var=var) @ s
            if case.biases and case.biases[k]:
                g = g + tp.bias(f"b{k}", n, var=case.biases[k])
            s, before = tp.nonlin(function(source), g), s
        if case.residual:
            s = s + case.residual * before
        return tp.weight("v", 1, n) @ s

    def vectors(x: Any) -> tuple[tp.Width, list[Any]]:
        n = tp.Width("n")
        return n, [tp.weight(f"W{k}", n, x.features, var=var) @ x for k, var in enumerate(case.variances)]

    def several(x: Any) -> Any:
        n, g = vectors(x)
        return tp.weight("v", 1, n) @ tp.nonlin(function(case.functions[0], len(g)), *g)

    def moment(x: Any) -> Any:
        _, g = vectors(x)
        return tp.moment(function(case.functions[0], len(g)), *g)

    def scaled(x: Any) -> Any:
        n, (g,) = vectors(x)
        f, h = map(function, case.functions)
        return tp.weight("v", 1, n) @ (tp.moment(h, g) * tp.nonlin(f, g))

    forms = {"chain": chain, "several": several, "moment": moment, "scaled": scaled}
    return tp.trace(forms[case.form], tp.Input(2))


@dataclass
class Answer:
    """By kernel: what was found, (N1, N2) or (N,), and the error that was stated; `drawn` ones are standard errors."""

    found: dict[str, tuple[np.ndarray, np.ndarray | None]]
    exact: bool = False
    drawn: bool = False


def ask(case: Case) -> Answer:
    made, x = program(case), jnp.asarray(case.inputs)
    x1, x2 = (x[:1], x) if case.cross else (x, None)
    if case.ask == "limit":
        limit = tp.limit(made, x)
        found = {"limit": (np.asarray(limit.value), np.asarray(limit.stderr))}
        return Answer(found, exact=limit.method == "exact", drawn=limit.method == "particles")
    drawn = report.is_sampled(made)
    if case.ask == "nngp" and not drawn:  # bounds come with both kernels, and the NTK may not exist
        return Answer({"nngp": (np.asarray(tp.nngp(made, x1, x2)), None)})
    if case.ask in ("slope", "slopes"):
        kernel = tp.nngp if case.ask == "slope" else lambda *a: tuple(tp.kernels(*a)[:2])
        number = made.numbers["W0.var"]
        at = lambda var: kernel(made.replace({"W0.var": var}), x)
        slopes = jax.jvp(at, (number,), (jnp.ones_like(number),))[1]
        several = {"nngp": slopes} if case.ask == "slope" else dict(zip(("nngp", "ntk"), slopes, strict=True))
        return Answer({kind: (np.asarray(slope), None) for kind, slope in several.items()})
    kernels = tp.kernels(made, x1, x2, error=case.error or drawn, samples=SAMPLES)
    kinds = ("nngp",) if case.ask == "nngp" else ("nngp", "ntk")
    bound = lambda kind: None if kernels.error is None else np.asarray(getattr(kernels.error, kind))
    return Answer({kind: (np.asarray(getattr(kernels, kind)), bound(kind)) for kind in kinds}, drawn=drawn)


# ---- how it came out


def judge(case: Case) -> Verdict:
    start = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            answer: Answer | Exception = ask(case)
        except Exception as error:
            answer = error
    warned = [str(w.message) for w in caught if issubclass(w.category, KernelWarning)]
    verdict, off, said = judged(case, answer, warned)
    return Verdict(case.name, verdict, off, said, time.process_time() - start)


def judged(case: Case, answer: Answer | Exception, warned: list[str]) -> tuple[str, float, str]:
    """(verdict, how far off in units of what is allowed, what was said or found)."""
    if isinstance(answer, tp.ProgramError):
        return ("right" if case.truth is None else "refused"), 0.0, str(answer)
    if isinstance(answer, Exception):
        return "wrong", np.inf, f"{type(answer).__name__}: {answer}"
    if case.truth is None:
        least = " and ".join(f"{kind} {value.ravel()[0]:.6g}" for kind, (value, _) in answer.found.items())
        return ("warned" if warned else "wrong"), np.inf, f"{least} where no expectation exists"
    worst, said, wide = 0.0, "", 0.0
    for kind, known in case.truth.items():
        value, error = answer.found[kind]
        for part, at in (("row", 0), ("diagonal", None)):
            if part not in known or (at is None and case.cross):
                continue
            pick = lambda a, at=at: a if a.ndim == 1 else a[at] if at is not None else np.diagonal(a)
            own, stated = pick(value), 0.0 if error is None else pick(error)
            scale = np.array(known["scale"]) if "scale" in known else _natural(known["diagonal"], part)
            off, width = _off(case, answer, own, np.array(known[part]), stated, scale, known["errors"])
            wide = max(wide, width)
            if not off.max() <= worst:
                worst = float(off.max())
                entry = int(np.argmax(off))
                said = f"{kind} {part} {entry}: {own[entry]:.9g} for {known[part][entry]:.9g}"
                said += "" if error is None else f" ± {np.ravel(stated)[entry]:.2g}"
    if wide > 1:
        return "refused", worst, f"a bound of {wide:.2g} of the kernel; {said}"
    if worst > 1 and not warned:
        return "wrong", worst, said
    if warned or wide > (WIDE_DRAWS if answer.drawn else WIDE):
        return "warned", worst, "; ".join([said, f"a bound of {wide:.2g} of the kernel", *warned])
    return "right", worst, said


def _natural(diagonal: Sequence[float], part: str) -> np.ndarray:
    """√(K(x, x) K(x̄, x̄)) of the entries of a part."""
    roots = np.sqrt(np.abs(diagonal))
    return roots * (roots if part == "diagonal" else roots[0])


def _off(
    case: Case, answer: Answer, own: Any, truth: Any, stated: Any, scale: Any, uncertain: float
) -> tuple[np.ndarray, float]:
    """How far off, in units of what is allowed; and how wide the stated error is beside the natural scale.

    Few replicates make an entry's own standard error now and then too small: it counts with those of all entries.
    """
    parts = EXACT if answer.exact else PART if case.ask != "limit" else EXACT
    stated = np.asarray(stated)
    if answer.drawn and case.ask != "limit":
        allowed = DEVIATIONS * np.hypot(stated, np.sqrt(np.mean(np.square(stated))))
    elif answer.drawn:
        allowed = DEVIATIONS * stated
    else:
        allowed = stated * (0.0 if answer.exact else 1.0)
    allowed = allowed + (parts[case.dtype] + 3 * uncertain) * scale
    off = np.abs(own - truth) / allowed
    return np.where(np.isfinite(off), off, np.inf), float((stated / scale).max(initial=0.0))


# ---- batches in processes of their own


def run_batch(names: Sequence[str], path: Path, kept: Path) -> None:
    """Judge these cases here, and append each verdict to the file of results."""
    jax.config.update("jax_disable_most_optimizations", True)
    cases = {case.name: case for case in load(path)}
    for name in names:
        with jax.enable_x64(cases[name].dtype == "float64"):
            verdict = judge(cases[name])
        _append(kept, verdict)


def known(kept: Path) -> dict[str, Verdict]:
    if not kept.exists():
        return {}
    return {v.name: v for v in (Verdict(**json.loads(line)) for line in kept.read_text("utf-8").splitlines())}


@dataclass
class Running:
    """A process, and how many of its cases were left when it last said something."""

    batch: list[str]
    process: subprocess.Popen[bytes]
    left: int
    since: float


def hunt(names: Sequence[str], path: Path, kept: Path, workers: int) -> None:
    """All cases of a file that have no verdict yet, `workers` processes at a time."""
    todo = [name for name in names if name not in known(kept)]
    batches = [todo[i : i + BATCH] for i in range(0, len(todo), BATCH)]
    running: list[Running] = []
    while batches or running:
        while batches and len(running) < workers:
            batch = batches.pop(0)
            command = [sys.executable, __file__, "--cases", str(path), "--kept", str(kept), "--one", json.dumps(batch)]
            running.append(Running(batch, subprocess.Popen(command), len(batch), time.monotonic()))
        time.sleep(0.5)
        found = known(kept)
        for one in list(running):
            left = [name for name in one.batch if name not in found]
            if len(left) < one.left:
                one.left, one.since = len(left), time.monotonic()
            silent = time.monotonic() - one.since
            if one.process.poll() is None and silent < PATIENCE:
                continue
            one.process.kill()
            code = one.process.wait()
            running.remove(one)
            left = [name for name in one.batch if name not in known(kept)]
            if left:  # the case that it died of; the rest is taken up again
                _append(kept, Verdict(left[0], "wrong", np.inf, f"took its process down, {code}", silent))
                batches += [left[1:]] if left[1:] else []


def _append(kept: Path, verdict: Verdict) -> None:
    with kept.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(verdict)) + "\n")


def rows(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """A row a kind, and one of all."""
    kinds = list(dict.fromkeys(v.name.split()[0] for v in verdicts))
    found = []
    for kind in [*kinds, "all"]:
        own = [v for v in verdicts if kind in (v.name.split()[0], "all")]
        counts = Counter(v.verdict for v in own)
        seconds = f"{sum(v.seconds for v in own) / max(1, len(own)):.0f} s"
        found.append([kind, str(len(own)), *(str(counts[v]) for v in VERDICTS), seconds])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", help="only these kinds")
    parser.add_argument("--names", nargs="*", help='only these cases, as "two 17"')
    parser.add_argument("--count", type=int, default=10**6, help="of each kind at most")
    parser.add_argument("--skip", type=int, default=0, help="so many of each kind")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="forget what is kept")
    parser.add_argument("--cases", type=Path, default=PATH, help="a file of cases")
    parser.add_argument("--kept", type=Path, default=report.KEPT / "hunt.jsonl", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the process of a batch
    arguments = parser.parse_args(argv)
    if arguments.one:
        run_batch(json.loads(arguments.one), arguments.cases, arguments.kept)
        return 0
    arguments.kept.parent.mkdir(exist_ok=True)
    if arguments.again:
        arguments.kept.unlink(missing_ok=True)
    names, seen = [], Counter[str]()
    for case in load(arguments.cases):
        number, seen[case.kind] = seen[case.kind], seen[case.kind] + 1
        named = case.name in arguments.names if arguments.names else case.kind in (arguments.kinds or [case.kind])
        if named and arguments.skip <= number < arguments.skip + arguments.count:
            names.append(case.name)
    hunt(names, arguments.cases, arguments.kept, arguments.workers)
    found = known(arguments.kept)
    verdicts = [found[name] for name in names if name in found]
    cases = {case.name: case for case in load(arguments.cases)}
    for v in verdicts:
        if v.verdict != "right":
            print(f"{v.name}, {v.verdict}, off {v.off:.3g}: {v.said}\n    {' | '.join(cases[v.name].functions)}")
    text = report.table(["kind", "cases", *VERDICTS, "CPU a case"], rows(verdicts))
    print(text)
    if arguments.out:
        arguments.out.write_text(f"# The hunt\n\n{text}\n", encoding="utf-8")
    return 1 if any(v.verdict == "wrong" for v in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
