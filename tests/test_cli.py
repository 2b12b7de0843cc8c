"""The command line: what it prints and writes, and one line for a user's mistake, never a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorprog.cli import main

CASES = Path(__file__).parent / "cases"


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(list(argv))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_show_check_recursion(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "show", "rnn", "--input", "8,16", "--set", "var_w=1.5")
    assert code == 0 and "N(0, 1.5/n)" in out and "return v s8" in out
    code, out, _ = run(capsys, "check", "mlp")
    assert code == 0 and "applies" in out
    code, out, _ = run(capsys, "recursion", "mlp", "--set", "depth=2")
    assert code == 0 and "C(s2)" in out and "NTK = " in out
    code, out, _ = run(capsys, "recursion", "mlp", "--latex")
    assert code == 0 and out.startswith(r"\begin{align*}")


def test_kernel_of_digits_and_of_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out_file = tmp_path / "k.npz"
    code, out, _ = run(capsys, "kernel", "mlp", "--inputs", "3", "--out", str(out_file))
    assert code == 0 and "NTK: 3 × 3, float64" in out
    with np.load(out_file) as arrays:
        assert set(arrays.files) == {"nngp", "ntk"} and arrays["ntk"].shape == (3, 3)
    x = np.random.default_rng(0).normal(size=(4, 5))
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", a=x, b=x[:2])
    (tmp_path / "x.csv").write_text("p,q,r,s,t\n" + "\n".join(",".join(map(str, row)) for row in x))
    printed = set()
    for source in ("x.npy", "x.npz:a", "x.csv"):
        code, out, _ = run(capsys, "kernel", "mlp", "--data", str(tmp_path / source), "--what", "ntk")
        assert code == 0
        printed.add(out.splitlines()[0])
    assert len(printed) == 1


def test_a_file_of_the_users(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import jax, tensorprog as tp\n"
        "def net(x, *, gain=1.0):\n"
        "    n = tp.Width('n')\n"
        "    return tp.weight('v', 1, n) @ tp.nonlin(jax.nn.relu, tp.weight('W', n, x.features, var=gain) @ x)\n"
    )
    code, out, _ = run(capsys, "show", f"{file}:net", "--input", "3", "--set", "gain=2.0")
    assert code == 0 and "N(0, 2/3)" in out


def test_compare_writes_table_and_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "c.png"
    code, out, _ = run(capsys, "compare", "--widths", "16,32", "--seeds", "2", "--inputs", "10", "--out", str(picture))
    assert code == 0 and picture.exists()
    assert "rnn: relative" in out and "mlp: relative" in out and out.count("rate") == 2
    code, out, _ = run(
        capsys, "compare", "mlp", "--widths", "16", "--seeds", "1", "--inputs", "3", "--out", str(picture)
    )
    assert code == 0 and "rate" not in out


@pytest.mark.slow
def test_the_main_job(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "compare", "--out", str(tmp_path / "compare.png"))
    assert code == 0 and "2048" in out and "20 handwritten digits" in out


def bad(tmp_path: Path) -> list[tuple[list[str], str]]:
    """Wrong calls, and what their one line must say."""
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "ragged.csv").write_text("1,2,3,4\n1,2\n")
    (tmp_path / "words.csv").write_text("1,2,3,4\n1,two,3,4\n")
    (tmp_path / "no.npy").write_bytes(b"not an array")
    (tmp_path / "nan.csv").write_text("1,2,3,4\n1,nan,3,4\n")
    np.save(tmp_path / "none.npy", np.zeros((0, 4)))
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    data = lambda name: ["kernel", "mlp", "--data", str(tmp_path / name)]
    case = lambda name: f"{CASES / name}.py:net"
    return [
        (["show", "mpl"], "mlp_tied"),
        (["show", str(tmp_path / "missing.py:net"), "--input", "4"], "no file"),
        (["show", f"{CASES / 'negative_variance.py'}:other", "--input", "4"], "its functions are net"),
        (["show", case("raises_on_import"), "--input", "4"], "ModuleNotFoundError"),
        (["show", case("negative_variance"), "--input", "4"], "negative_variance.py:8"),
        (["show", case("negative_variance")], "--input"),
        (["show", "mlp", "--input", "a,b"], "--input"),
        (["show", "mlp", "--set", "dept=5"], "depth"),
        (["show", "mlp", "--set", "depth"], "NAME=VALUE"),
        (data("missing.csv"), "no file"),
        (data("empty.csv"), "empty"),
        (data("ragged.csv"), "ragged"),
        (data("words.csv"), "two"),
        (data("no.npy"), "can't be read"),
        (data("none.npy"), "no examples"),
        (data("text.npy"), "not numbers"),
        (data("nan.csv"), "NaN"),
        (["kernel", "mlp", "--data", str(tmp_path)], "known kind"),
        (["kernel", "mlp", "--inputs", "0"], "inputs"),
        (["kernel", "rnn", "--input", "3,3", "--inputs", "2"], "x1"),
        (["kernel", "mlp", "--convention", "ours"], "convention"),
        (["kernel", "mlp", "--out", str(tmp_path / "nowhere" / "k.npz")], "--out"),
        (["compare", "mlp", "--widths", "0"], "widths"),
        (["compare", "mlp", "--seeds", "0", "--widths", "8"], "seeds"),
        (["compare", "--out", str(tmp_path / "nowhere" / "c.png")], "--out"),
    ]


def test_mistakes_get_one_line_and_status_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for argv, words in bad(tmp_path):
        code, _, err = run(capsys, *argv)
        assert code == 1, argv
        assert words in err and "Traceback" not in err, (argv, err)
        assert err.startswith(f"tensorprog {argv[0]}: ")


def test_usage_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "tensorprog compare" in out and "examples" in out
    with pytest.raises(SystemExit) as stop:
        main(["kernel", "mlp", "--widths", "3"])
    assert stop.value.code == 2


def test_the_installed_command() -> None:
    program: Any = [sys.executable, "-c", "from tensorprog.cli import main; raise SystemExit(main())", "show", "mpl"]
    done = subprocess.run(program, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
