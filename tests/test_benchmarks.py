"""The benchmarks' commands at a tiny size: what they print, write, keep, and give back."""

from __future__ import annotations

import re
from pathlib import Path

import convergence
import digits
import empirical as empirical_times
import jax.numpy as jnp
import numpy as np
import pytest
import rates
import regression
import report
import sequences
import training


@pytest.fixture(autouse=True)
def kept_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report, "KEPT", tmp_path / "kept")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def body(page: Path) -> list[list[str]]:
    """The cells of a page's table without its head."""
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    return [cells(line) for line in lines[2:]]


@pytest.mark.full
@pytest.mark.slow
def test_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "rates.md"
    arguments = ["--widths", "4", "8", "16", "--seeds", "3", "3", "3", "--most", "3", "--out", str(page)]
    assert rates.main(["mlp", "siamese", *arguments]) == 1  # three networks of width 16 show no convergence
    titles = [row[0] for row in body(page)]
    assert titles[:2] == ["mlp, NNGP", "mlp, NTK"]
    assert titles[2:] == [f"siamese, {kind} of output {o}" for o in (1, 2) for kind in ("NNGP", "NTK")]
    assert all(row[-2] == "**no**" for row in body(page))
    assert "Not run: mlp_tied, " in page.read_text(encoding="utf-8")
    assert "siamese, NTK of output 2" in capsys.readouterr().out


def test_an_interrupted_command_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, seen = tmp_path / "rates.md", []

    def measure(name: str, **settings: object) -> list[rates.Measured]:
        seen.append(name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return [rates.Measured(None, kind, rates.Rate(-0.5, 0.01, 0.001, 0.002), 0.0, [3]) for kind in rates.KINDS]

    monkeypatch.setattr(rates, "measure", measure)
    arguments = ["mlp", "rnn", "--out", str(page)]
    with pytest.raises(KeyboardInterrupt):
        rates.main(arguments)
    assert not page.exists()
    assert rates.main(arguments) == 0
    assert seen == ["mlp", "rnn", "rnn"]
    assert [row[0] for row in body(page)] == ["mlp, NNGP", "mlp, NTK", "rnn, NNGP", "rnn, NTK"]
    rates.main(arguments)  # a finished command leaves nothing behind
    assert seen[3:] == ["mlp", "rnn"]


def test_results_under_other_settings_are_not_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    assert report.Kept(path, {"seeds": (1, 2)}).get("a", lambda: 1) == 1
    assert report.Kept(path, {"seeds": (1, 2)}).get("a", lambda: 2) == 1
    assert report.Kept(path, {"seeds": (1, 3)}).get("a", lambda: 3) == 3


@pytest.mark.full
@pytest.mark.slow
def test_convergence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "convergence.md"
    assert convergence.main(["--widths", "32", "128", "512", "--seeds", "12", "--out", str(page)]) == 0
    rows = body(page)
    assert [row[0] for row in rows] == ["RNN, average pool", "transformer", "batch norm"]
    for row in rows:
        assert float(row[1]) > float(row[2]) > float(row[3])
        exponent = float(row[4].split("^")[1])
        assert abs(exponent + 0.5) < 0.05 + 3 * float(row[5])
    assert "![" in page.read_text(encoding="utf-8")
    assert 1e3 < (tmp_path / "convergence.svg").stat().st_size < 2e5
    assert "published 3.4 n^-0.461" in capsys.readouterr().out


def test_the_papers_convention_is_taken_by_learning_rates() -> None:
    """lr = 1/var under the default convention is the NTK of "init-std"."""
    import tensorprog as tp

    curve = convergence.FIGURES[0]
    x = curve.data()
    plain = tp.nets.net(curve.net).program(tp.Input(*x.shape[1:]), **curve.keywords)
    np.testing.assert_allclose(tp.ntk(curve.program(x.shape[1:]), x), tp.ntk(plain, x, convention="init-std"), 1e-12)


def test_the_law_of_made_up_errors() -> None:
    import tensorprog as tp

    widths = (64, 256, 1024)
    errors = 1.76 * np.array(widths, dtype=float)[:, None] ** -0.497 * np.ones((3, 5))
    found = tp.Comparison("net", widths, {"nngp": errors, "ntk": errors}, {}, {})
    fitted = convergence.law(found)
    np.testing.assert_allclose((fitted.a, fitted.b), (1.76, -0.497), rtol=1e-12)


def test_digits(tmp_path: Path) -> None:
    page = tmp_path / "digits.md"
    assert digits.main(["--nets", "mlp", "--count", "200", "--sampled-count", "100", "--out", str(page)]) == 0
    rows = body(page)
    assert [row[:2] for row in rows[:2]] == [["mlp, NNGP", "200"], ["mlp, NTK", "200"]]
    shares = {(row[0], row[1]): float(row[2].split()[0]) for row in rows}
    assert shares["mlp, NTK", "200"] > 70
    assert shares["SVM, RBF kernel", "200"] > shares["k-NN, k = 3", "100"] > 50


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n if n == "rnn" else pytest.param(n, marks=pytest.mark.full) for n in digits.NETS if n != "mlp"]
)
def test_digits_through_every_net(name: str) -> None:
    found = digits.through(name, 60, 0, 1e-3, 2**13)  # with fewer draws the noise of a GRU's kernel decides
    for kind in ("nngp", "ntk"):
        assert found[kind]["accuracy"] > 0.25
        assert (found[kind]["error"] is None) == (name != "gru")


@pytest.mark.full
@pytest.mark.slow
def test_sequences(tmp_path: Path) -> None:
    """One case, in a process of its own."""
    page = tmp_path / "speed.md"
    sizes = ["--length", "2", "--inputs", "2", "--samples", "64"]
    assert sequences.main(["--cases", "gru", "--kinds", "nngp", *sizes, "--out", str(page)]) == 0
    ((title, first, cpu, again, _, error),) = body(page)
    assert title == "gru, NNGP, 64 draws, 2 of 2 × 16"
    assert re.fullmatch(r"\d+\.\d s", first) and re.fullmatch(r"\d+\.\d s", cpu) and not again
    assert 0 < float(error.split()[0]) < 50


def test_what_is_not_sampled_is_timed_twice() -> None:
    found = sequences.measure(sequences.Case("mlp", "ntk", 2, (3,)))
    assert found["error"] is None and found["again"]["wall"] < found["first"]["wall"]


def test_a_case_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="no architecture of the zoo"):
        sequences.in_fresh_process(sequences.Case("mpl", "ntk", 2, (3,)))


def test_times_of_empirical_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = empirical_times.dense(3, 4, 2)
    small = {
        kind: empirical_times.Case("MLP", empirical_times.mlp, params, jnp.ones((2, 3)), kind)
        for kind in ("trace", "full")
    }
    monkeypatch.setattr(empirical_times, "cases", lambda: small)
    page = tmp_path / "empirical.md"
    empirical_times.main(["--repeats", "1", "--out", str(page)])  # what it returns goes by microseconds here
    assert [row[0] for row in body(page)] == ["MLP, trace", "MLP, full"]
    assert all(float(row[-1]) < 1e-5 for row in body(page))


@pytest.mark.full
@pytest.mark.slow
def test_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "regression.md"
    arguments = ["--nets", "mlp", "--count", "300", "--repeats", "1", "--out", str(page)]
    assert regression.main(arguments) == 0
    rows = body(page)
    assert [row[0] for row in rows] == ["NTK regression, mlp", "SVM, RBF kernel", "k-NN"]
    assert all(70 < float(row[1].removesuffix(" %")) <= 100 for row in rows)
    assert "depth=" in rows[0][2] and "NTK regression, mlp" in capsys.readouterr().out


@pytest.mark.slow
def test_training(tmp_path: Path) -> None:
    page = tmp_path / "training.md"
    sizes = ["--count", "12", "--tests", "4", "--seeds", "2", "--widths", "16", "64"]
    assert training.main(["mlp", *sizes, "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "mlp: 12 training and 4 test inputs" in text and "until its own loss has fallen by 90 %; 2 of" in text
    assert (tmp_path / "training.svg").exists() and not list(tmp_path.glob("kept/*"))
