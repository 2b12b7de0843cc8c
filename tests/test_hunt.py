"""The hunt: its reference against closed forms, its judgements, and its cases, all of them with `-m full`."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import hunt
import hunt_cases
import jax
import numpy as np
import pytest
from hunt_points import Function
from hunt_truths import Covariance, mean, pair

import tensorprog as tp

CASES = {case.name: case for case in hunt_cases.load()}


# ---- the reference


def of_angle(variance: float, angle: float) -> Covariance:
    return Covariance(variance, variance, variance * math.cos(angle), (variance * math.sin(angle)) ** 2)


@pytest.mark.parametrize("angle", [0.0, 1e-5, 1.5, 3.0, math.pi])
def test_expectations_of_two_gaussians(angle: float) -> None:
    """relu and sign (arc cosines), sin (Gaussian integrals), a bell turned upside down."""
    cov, rho = of_angle(2.0, angle), math.cos(angle)
    found = pair(["relu(a)", "sin(3*a)"], ["relu(a)", "sin(3*a)"], cov)
    relu = (math.sin(angle) + (math.pi - angle) * rho) / math.pi, (math.pi - angle) / (2 * math.pi)
    sin = math.exp(-18) * math.sinh(18 * rho), 9 * math.exp(-18) * math.cosh(18 * rho)
    np.testing.assert_allclose(np.diagonal(found.value), [relu[0], sin[0]], atol=1e-13)
    np.testing.assert_allclose(np.diagonal(found.slope), [relu[1], sin[1]], atol=1e-12)
    sign = pair(["sign(a)"], ["sign(a)"], cov)
    np.testing.assert_allclose(sign.value, 1 - 2 * angle / math.pi, atol=1e-13)
    growing = pair(["exp(0.11*a*a)"], ["exp(0.11*a*a)"], cov, False)
    np.testing.assert_allclose(growing.value, (0.56**2 - (0.44 * rho) ** 2) ** -0.5, rtol=1e-13)


def test_expectations_of_one_gaussian() -> None:
    np.testing.assert_allclose(mean(Function("exp(12*a)"), 1.0)[0], math.exp(72), rtol=1e-13)
    np.testing.assert_allclose(mean(Function("log(abs(a - 0.0))"), 1.0)[0], -(np.euler_gamma + math.log(2)) / 2)
    # E |z|^-p = 2^(-p/2) Γ((1 - p)/2)/√π, also where much of it lies below 1e-8
    for p in (0.5, 0.7):
        exact = 2 ** (-p / 2) * math.gamma((1 - p) / 2) / math.sqrt(math.pi)
        np.testing.assert_allclose(mean(Function(f"abs(a - 0.0)**-{p}"), 1.0)[0], exact, rtol=1e-11)


def test_breaks_are_found_inside_of_functions() -> None:
    """Staircases, kinks of oscillations, and where two functions cross."""
    np.testing.assert_allclose(Function("floor(a)").breaks()[11:14], [-2.0, -1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(Function("relu(sin(2*a))").breaks(), np.arange(-8, 9) * np.pi / 2, atol=1e-12)
    np.testing.assert_allclose(Function("maximum(a*a, 2 - a)").breaks(), [-2.0, 1.0], atol=1e-12)
    staircase = pair(["round(4*a)/4"], ["round(4*a)/4"], Covariance(1.5, 0.8175, 0.525, (0.75 * 1.3) ** 2))
    np.testing.assert_allclose(staircase.value, 0.525, rtol=1e-12)


def test_slopes_are_the_functions_own() -> None:
    """Every function that cases are made of, beside JAX's derivative of what the library is given."""
    at = np.array([-1.7, -0.4, 0.3, 1.2, 2.6])
    for name in hunt.NAMES:
        source = {"maximum": "maximum(a*a, 1 + a)", "where": "where(a > 0.5, sin(a), a*a)"}.get(name, f"{name}(a)")
        source = source.replace("(a)", "(1 + a*a)") if name in ("log", "sqrt") else source
        value, slope = Function(source)(at, 0 * at)
        given = hunt.function(source)
        np.testing.assert_allclose(value[0], jax.vmap(given)(at), rtol=1e-12, atol=1e-14, err_msg=name)
        np.testing.assert_allclose(slope[0], jax.vmap(jax.grad(given))(at), rtol=1e-12, atol=1e-14, err_msg=name)


# ---- judgements


def answered(found: float, error: float | None = None, **options: Any) -> hunt.Answer:
    value = np.array([[found, 0.5], [0.5, 1.0]])
    return hunt.Answer({"nngp": (value, None if error is None else np.full((2, 2), error))}, **options)


PLAIN = hunt.Case("smooth", 0, "chain", "nngp", ["a"], [1.0], [[1.0, 0.0], [0.0, 1.0]],
                  truth={"nngp": {"row": [1.0, 0.5], "diagonal": [1.0, 1.0], "errors": 1e-14}})  # fmt: skip
NOWHERE = hunt.Case("poles", 0, "chain", "nngp", ["1/a"], [1.0], [[1.0, 0.0]], truth=None)
REFUSED = tp.ProgramError("no")


@pytest.mark.parametrize(
    ("case", "answer", "warned", "verdict"),
    [
        (PLAIN, answered(1 + 5e-7), [], "right"),
        (PLAIN, answered(1 + 5e-6), [], "wrong"),
        (PLAIN, answered(1 + 5e-6), ["may be off"], "warned"),
        (PLAIN, answered(1.0), ["may be off"], "warned"),
        (PLAIN, answered(1 + 5e-4, 1e-3), [], "right"),
        (PLAIN, answered(1 + 5e-3, 1e-3), [], "wrong"),
        (PLAIN, answered(1.0, 0.1), [], "warned"),
        (PLAIN, answered(1.0, 2.0), [], "refused"),
        (PLAIN, answered(1.05, 0.02, drawn=True), [], "right"),
        (PLAIN, answered(1.5, 0.02, drawn=True), [], "wrong"),
        (PLAIN, answered(math.nan), [], "wrong"),
        (PLAIN, answered(1.0, math.nan), [], "wrong"),
        (PLAIN, REFUSED, [], "refused"),
        (PLAIN, TypeError("raw"), [], "wrong"),
        (NOWHERE, REFUSED, [], "right"),
        (NOWHERE, answered(1e9), [], "wrong"),
        (NOWHERE, answered(1e9, 1e10), ["may be off"], "warned"),
    ],
)
def test_verdicts(case: hunt.Case, answer: Any, warned: list[str], verdict: str) -> None:
    assert hunt.judged(case, answer, warned)[0] == verdict


def test_a_case_that_takes_its_process_down_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of its batch is taken up again, and nothing is asked twice."""
    script = tmp_path / "batch.py"
    script.write_text(
        "import json, os, sys\n"
        "kept, names = sys.argv[4], json.loads(sys.argv[6])\n"
        "for name in names:\n"
        "    if name == 'b': os.abort()\n"
        "    verdict = dict(name=name, verdict='right', off=0.0, said='', seconds=1.0)\n"
        "    open(kept, 'a').write(json.dumps(verdict) + '\\n')\n"
    )
    monkeypatch.setattr(hunt, "__file__", str(script))
    kept = tmp_path / "kept.jsonl"
    hunt.hunt("abc", hunt_cases.PATH, kept, 1)
    found = hunt.known(kept)
    assert [found[name].verdict for name in "abc"] == ["right", "wrong", "right"]
    lines = kept.read_text("utf-8")
    hunt.hunt("abc", hunt_cases.PATH, kept, 1)
    assert kept.read_text("utf-8") == lines


# ---- the cases


def test_all_kinds_are_there() -> None:
    counts = Counter(case.kind for case in CASES.values())
    assert set(counts) == set(hunt_cases.KINDS) and min(counts.values()) >= 50
    assert sum(case.dtype == "float32" for case in CASES.values()) > 100
    assert sum(case.truth is None for case in CASES.values()) > 20


def test_a_seed_is_its_case() -> None:
    """What is kept is what the seed makes, truth included."""
    for name in ("kinked 3", "moments 7"):
        kind, seed = name.split()
        made = json.loads(hunt_cases.line((kind, int(seed))))
        kept = json.loads(hunt_cases.text(CASES[name]))
        assert made["functions"] == kept["functions"] and made["x"] == kept["x"]
        for key, known in (kept["truth"] or {}).items():
            np.testing.assert_allclose(made["truth"][key]["row"], known["row"], rtol=1e-9, atol=1e-13)


# Those that take a second or two each: kernels without a closed form take ten times as long, most of it compilation.
FIXED = (
    "poles 0", "poles 1", "poles 4", "poles 6",
    *(f"moments {seed}" for seed in (1, 2, 3, 8, 11, 13, 17, 19, 23, 25, 26, 27, 31, 32, 36, 39)),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED)
def test_fixed_cases(name: str) -> None:
    with jax.enable_x64(CASES[name].dtype == "float64"):
        found = hunt.judge(CASES[name])
    assert found.verdict == "right", found


@pytest.mark.full
@pytest.mark.slow
def test_the_hunt(tmp_path: Path) -> None:
    """500 cases: none silently wrong, at most one in fifty wrongly refused or warned."""
    hunt.hunt(list(CASES), hunt_cases.PATH, tmp_path / "kept.jsonl", os.cpu_count() or 1)
    verdicts = hunt.known(tmp_path / "kept.jsonl").values()
    counts = Counter(v.verdict for v in verdicts)
    assert counts["wrong"] == 0, [v for v in verdicts if v.verdict == "wrong"]
    assert counts["warned"] + counts["refused"] <= len(CASES) / 50, [v for v in verdicts if v.verdict != "right"]
