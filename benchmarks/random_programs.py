"""Random programs by both roads: the recursion differentiated, and the moments of the backward program.

    python benchmarks/random_programs.py [--programs 1000] [--seed 0]

Different programs are made until there are so many. Prints how many agree, how far the roads are apart at most, in
standard errors, the part of the programs whose first entry is off by more than 2 and 3 of them (half normal: 4.6 % and
0.3 %), and every program that does not agree, as a listing and as source. Exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from agreement import Agreement, agreement, integrated
from programs import distinct, features

from tensorprog.interpret.system import moments


def release() -> None:
    """Drop compiled functions before they take all pieces of memory that a process may have (65 530 on Linux)."""
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text(encoding="utf-8").count("\n") > 40_000:
        moments.cache_clear()
        jax.clear_caches()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=int, default=0, help="leave the first out, to go on with a run")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)  # compiling takes more time than what is compiled
    made = distinct(options.programs, start=options.seed)[options.skip :]
    found: list[Agreement] = []
    failures, has, start = 0, Counter(), time.process_time()
    for number, sketch in enumerate(made, options.skip + 1):
        program = sketch.program
        has.update(features(program))
        try:
            has.update(() if integrated(program) else ("sampled",))
            found.append(agreement(program, sketch.data(), seed=options.seed))
            told = str(found[-1]) if not found[-1] else ""
        except Exception as error:  # whatever it is, the program is to be seen
            told = f"{type(error).__name__}: {error}"
        if told:
            failures += 1
            print(f"\nprogram {number}: {told}\n{sketch!r}\n{sketch}\n", flush=True)
        if number % 10 == 0:
            spent = time.process_time() - start
            print(f"{number} programs, {failures} failures, {spent:.0f} s of processor time", flush=True)
            release()
    summary(found, has, failures)
    sys.exit(1 if failures else 0)


def summary(found: list[Agreement], has: Counter[str], failures: int) -> None:
    drawn = np.array([abs(a.tries[0].first) for a in found if not a.tries[0].exact])
    most = max((a.tries[-1].worst for a in found), default=0.0)
    print(f"\n{len(found)} programs, {len(drawn)} of them against draws: {failures} failures")
    print(f"  the last comparison's worst entry: {most:.2f} standard errors")
    print(f"  done again with more draws: {sum(len(a.tries) > 1 for a in found)}")
    for limit, expected in ((1, 0.325), (2, 0.053), (3, 0.005)):
        part = float((drawn > limit).mean()) if len(drawn) else 0.0
        print(f"  first entry off by more than {limit}: {part:.3f} (Student, 31 degrees of freedom: {expected})")
    print("  " + ", ".join(f"{name}: {count}" for name, count in sorted(has.items())))


if __name__ == "__main__":
    main()
