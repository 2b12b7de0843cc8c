"""The command line: what it prints and writes, and one line for a user's mistake, never a traceback."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog.cli import main
from tensorprog.cli.prediction import _task
from tensorprog.data import digits, load

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


def test_predictions_of_digits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out_file = tmp_path / "p.npz"
    given = ["predict", "mlp", "--set", "depth=1", "--inputs", "60"]
    code, out, err = run(capsys, *given, "--out", str(out_file))
    assert code == 0 and err == "" and "NTK, t = ∞, ridge 0.001" in out and "10 classes" in out
    assert "accuracy" in out and "leave-one-out" in out and "condition number" in out
    with np.load(out_file) as arrays:
        assert arrays["mean"].shape == (30, 10) and arrays["std"].shape == (30,) and arrays["kernel"].shape == (30, 30)
        right = np.mean(arrays["classes"][arrays["mean"].argmax(1)] == arrays["targets"])
        assert sorted([*arrays["train"], *arrays["test"]]) == list(range(60))
    assert right > 0.7 and f"held out {100 * right:.1f} ±" in out
    code, out, _ = run(capsys, *given, "--kernel", "nngp", "--time", "3", "--lr", "0.1", "--test", "0.2")
    assert code == 0 and "NNGP, t = 3" in out and "48 examples to learn from, 12 held out" in out


def test_predictions_of_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    y = np.sin(x[:, 0]) + 5
    np.savetxt(tmp_path / "xy.csv", np.column_stack([x, y]), delimiter=",")
    np.savez(tmp_path / "xy.npz", x=x, y=y, double=np.column_stack([y, 2 * y]))
    given = ["predict", "mlp", "--set", "depth=1", "--ridge", "0.01", "--data"]
    code, out, _ = run(capsys, *given, str(tmp_path / "xy.csv"), "--standardise")
    assert code == 0 and "RMSE" in out and "the training mean" in out
    held_out, mean = (float(part.split()[0].rstrip(";")) for part in (out.split("held out ")[1], out.split("mean ")[1]))
    assert held_out < 0.7 * mean < 1
    npz = str(tmp_path / "xy.npz")
    code, again, _ = run(capsys, *given, f"{npz}:x", "--targets", f"{npz}:y", "--standardise")
    assert code == 0 and again.splitlines()[1:4] == out.splitlines()[1:4]
    code, out, _ = run(capsys, *given, f"{npz}:x", "--targets", f"{npz}:double")
    assert code == 0 and "targets (40, 2)" in out
    code, out, err = run(capsys, *given[:4], "--ridge", "0", "--data", _twice(tmp_path, x, y))
    assert code == 0 and "warning: ktt is ill-conditioned: condition number" in err


def test_predictions_are_written_in_the_datas_units(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    y, labels = np.sin(x[:, 0]) + 5, np.where(x[:, 0] > 0, 7, 3)
    np.savez(tmp_path / "xy.npz", x=x, y=y, labels=labels)
    npz, out_file = str(tmp_path / "xy.npz"), str(tmp_path / "p.npz")
    given = ["predict", "mlp", "--set", "depth=1", "--data", f"{npz}:x", "--out", out_file, "--targets"]
    assert run(capsys, *given, f"{npz}:y")[0] == 0
    with np.load(out_file) as arrays:
        np.testing.assert_allclose(arrays["targets"][:, 0], y[arrays["test"]])
        assert np.abs(arrays["mean"] - arrays["targets"]).mean() < 0.5 and "classes" not in arrays
    assert run(capsys, *given, f"{npz}:labels", "--classify")[0] == 0
    with np.load(out_file) as arrays:
        assert arrays["classes"].tolist() == [3, 7]
        np.testing.assert_array_equal(arrays["targets"], labels[arrays["test"]])
        np.testing.assert_allclose(arrays["mean"].sum(1), 1, rtol=1e-8)
        assert np.mean(arrays["classes"][arrays["mean"].argmax(1)] == arrays["targets"]) > 0.7
    for kind in ("ntk", "nngp"):  # a rate of 0 freezes
        code, _, _ = run(capsys, *given, f"{npz}:y", "--lr", "0", "--kernel", kind)
        with np.load(out_file) as arrays:
            assert code == 0
            np.testing.assert_allclose(arrays["mean"], y[arrays["train"]].mean(), rtol=1e-12)


def test_scalars_are_not_standardised() -> None:
    x, graph = np.arange(12.0).reshape(4, 3), np.ones((4, 2, 2))
    given = argparse.Namespace(test=0.5, seed=0, classify=False, standardise=True)
    task = _task(given, (tp.Input(3), tp.Data(2, 2)), (x, graph), np.arange(4.0))
    np.testing.assert_array_equal(task.inputs[1], graph)
    np.testing.assert_allclose(task.inputs[0][task.train].std(0), 1)


def _twice(tmp_path: Path, x: np.ndarray, y: np.ndarray) -> str:
    """A file in which every example stands twice."""
    np.savetxt(tmp_path / "twice.csv", np.repeat(np.column_stack([x, y]), 2, 0), delimiter=",")
    return str(tmp_path / "twice.csv")


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


def test_a_model_of_the_users(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What makes a model is imported; its keywords and mistakes are told as any function's."""
    file = tmp_path / "model.py"
    file.write_text(
        "import jax\n"
        "def build(width, key):\n"
        "    k = jax.random.split(key)\n"
        "    p = {'U': jax.random.normal(k[0], (3, width)), 'v': jax.random.normal(k[1], (width,))}\n"
        "    return lambda p, x: jax.nn.relu(x @ p['U']) @ p['v'] / width**0.5, p\n"
        "def grows(width, key):\n"
        "    f, p = build(width, key)\n"
        "    return lambda p, x: f(p, x) * width, p\n"
        "def raises(width, key):\n"
        "    return 1 / 0\n"
    )
    code, out, _ = run(capsys, "show", f"{file}:build", "--input", "3")
    assert code == 0 and "relu" in out and "U n × 3" in " ".join(out.split())
    code, out, err = run(capsys, "show", f"{file}:grows", "--input", "3")
    assert code == 1 and "model.py:8" in err and "Traceback" not in err
    code, out, err = run(capsys, "show", f"{file}:raises", "--input", "3")
    assert code == 1 and "ZeroDivisionError" in err and "Traceback" not in err


@pytest.mark.slow
def test_compare_writes_table_and_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "c.png"
    code, out, _ = run(capsys, "compare", "--widths", "16,32", "--seeds", "2", "--inputs", "10", "--out", str(picture))
    assert code == 0 and picture.exists()
    assert "rnn: relative" in out and "mlp: relative" in out and out.count("rate") == 2
    code, out, _ = run(
        capsys, "compare", "mlp", "--widths", "16", "--seeds", "1", "--inputs", "3", "--out", str(picture)
    )
    assert code == 0 and "rate" not in out


def test_the_digits_are_of_all_classes() -> None:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    images, targets = load_digits(return_X_y=True)
    found = digits()
    rows = (found * images.std() + images.mean()).reshape(20, 64)
    labels = [targets[np.abs(images - row).sum(1).argmin()] for row in rows]
    assert labels == [label for label in range(10) for _ in range(2)]
    assert digits(3).shape == (3, 8, 8)


def test_keywords_and_shapes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(3, 6))
    np.savetxt(tmp_path / "x.csv", x, delimiter=",")
    np.save(tmp_path / "x.npy", x.reshape(3, 2, 3))
    printed = []
    for arguments in (["--data", str(tmp_path / "x.csv"), "--input", "2,3"], ["--data", str(tmp_path / "x.npy")]):
        code, out, _ = run(capsys, "kernel", "rnn", *arguments, "--set", "fn=sin", "--what", "nngp", "--float32")
        assert code == 0 and out.startswith("NNGP: 3 × 3, float32") and "NTK" not in out
        printed.append(out.splitlines()[:4])
    assert printed[0] == printed[1]
    code, out, _ = run(capsys, "show", "mlp", "--set", "fn=erf", "--set", "depth=2")
    assert code == 0 and "erf(" in out and "W3" not in out


@pytest.mark.full  # the README's first command is this
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
    (tmp_path / "no.npz").write_bytes(b"PK not an archive")
    (tmp_path / "syntax.py").write_text("def net(x:\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "raises.py").write_text("def net(x):\n    return 1 / 0\n")
    np.save(tmp_path / "none.npy", np.zeros((0, 4)))
    np.save(tmp_path / "good.npy", np.ones((2, 6)))
    np.savez(tmp_path / "two.npz", a=np.ones(2), b=np.ones(2))
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    np.save(tmp_path / "three.npy", np.arange(3.0))
    np.save(tmp_path / "pair.npy", np.arange(2.0))
    learn = ["predict", "mlp", "--data", str(tmp_path / "good.npy"), "--targets"]
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
        (["show", f"{tmp_path / 'syntax.py'}:net", "--input", "4"], "SyntaxError"),
        (["show", f"{tmp_path / 'exits.py'}:net", "--input", "4"], "exits.py:1"),
        (["show", f"{tmp_path / 'raises.py'}:net", "--input", "4"], "raises.py:2"),
        (["show", "mlp", "--set", "fn=tanhh"], "fn=tanhh: there is no such function"),
        (["show", "mlp", "--set", "depth=0"], "depth=0"),
        (["show", "rnn", "--input", "64"], "give tp.Input(time, features)"),
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
        (data("no.npz"), "can't be read"),
        (data("two.npz"), "two.npz holds a, b; say which"),
        (data("two.npz:c"), "no array 'c'"),
        ([*data("good.npy"), "--inputs", "3"], "--inputs: 3 examples"),
        (["kernel", "rnn", "--data", str(tmp_path / "good.npy")], "--input 8,8"),
        (["kernel", "rnn", "--data", str(tmp_path / "good.npy"), "--input", "2,4"], "--input: 2,4 does not fit"),
        (["kernel", "mlp", "--data", str(tmp_path)], "known kind"),
        (["kernel", "mlp", "--inputs", "0"], "inputs"),
        (["kernel", "rnn", "--input", "3,3", "--inputs", "2"], "--input"),
        (["kernel", "mlp", "--convention", "ours"], "convention"),
        (["kernel", "mlp", "--out", str(tmp_path / "nowhere" / "k.npz")], "--out"),
        (["kernel", "mlp", "--out", str(tmp_path / "k.txt")], ".npz"),
        (["kernel", "mlp", "--out", ""], "--out"),
        (["compare", "mlp", "--widths", "0"], "widths"),
        (["compare", "mlp", "--seeds", "0", "--widths", "8"], "seeds"),
        (["compare", "mlp", "--widths", "64,x"], "--widths"),
        (["compare", "--out", str(tmp_path / "nowhere" / "c.png")], "--out"),
        (["compare", "--out", str(tmp_path / "c.doc")], ".png"),
        (["compare", "--out", str(tmp_path)], "--out"),
        (["compare", "--set", "depth=3"], "--set"),
        (["compare", "--data", "digits"], "--data"),
        (["kernel", "mlp", "--widths", "3"], "--widths"),
        (["predict"], "PROGRAM"),
        (["predict", "mpl"], "mlp_tied"),
        (["predict", "unet"], "more than one number an example"),
        (["predict", "siamese"], "--data: 1 arrays for 2 inputs"),
        (["predict", "batchnorm_mlp"], "more than one number an example"),
        (["predict", "mlp", "--ridge", "-1"], "--ridge"),
        (["predict", "mlp", "--ridge", "inf"], "--ridge: it is infinite"),
        (["predict", "mlp", "--time", "-1"], "'-1' is no number of at least 0"),
        (["predict", "mlp", "--seed", "-1"], "'-1' is no whole number of at least 0"),
        (["predict", "mlp", "--test", "1"], "'1' is not between 0 and 1"),
        (["predict", "mlp", "--test", "0.001"], "--test: 0.001 of 200 examples"),
        (["predict", "mlp", "--inputs", "1"], "--test"),
        (["predict", "mlp", "--inputs", "10"], "as many classes as examples"),
        (["predict", "mlp", "--targets", str(tmp_path / "pair.npy")], "--targets: digits have their own"),
        (["predict", "mlp", "--data", str(tmp_path / "good.npy")], "--targets: they are not known"),
        (["predict", "mlp", "--out", str(tmp_path / "p.txt")], ".npz"),
        ([*learn, str(tmp_path / "three.npy")], "--targets: 3 targets for 2 examples"),
        ([*learn, str(tmp_path / "missing.npy")], "no file"),
        ([*learn, str(tmp_path / "nan.csv")], "NaN"),
        ([*learn, str(tmp_path / "pair.npy"), "--classify"], "as many classes as examples"),
        ([*learn, str(tmp_path / "good.npy"), "--classify"], "--classify: targets have 6 columns"),
        (["sow", "mlp"], "'sow'"),
        (["kernel"], "PROGRAM"),
    ]


def test_mistakes_get_one_line_and_status_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for argv, words in bad(tmp_path):
        code, _, err = run(capsys, *argv)
        assert code == 1, argv
        assert words in err and "Traceback" not in err, (argv, err)
        assert err.startswith("tensorprog") and (err.count("\n") == 1 or CASES.name in argv[1]), (argv, err)


def test_usage_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0 and "tensorprog compare" in out and "examples" in out
    for command in ("show", "check", "recursion", "kernel", "compare", "predict"):
        code, text, _ = run(capsys, command, "--help")
        assert code == 0 and "file.py:function" in text and command in out


def test_the_precision_of_the_process_is_left_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    before = jnp.result_type(float)
    run(capsys, "show", "mlp")
    run(capsys, "show", "mpl")
    assert jnp.result_type(float) == before


def test_the_installed_command() -> None:
    command = Path(sysconfig.get_path("scripts")) / "tensorprog"
    done = subprocess.run(
        [command, "show", "mpl"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "mlp_tied" in done.stderr


def test_a_reader_that_goes_away() -> None:
    code = "import sys; from tensorprog.cli import main; sys.exit(main(['show', 'mlp', '--set', 'depth=100']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process.stderr as errors:
        assert b"Traceback" not in errors.read()
    assert process.wait() == 141  # as a program that SIGPIPE ends


def test_programs_of_several_inputs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Graphs and their adjacency: --input and --data once for each input; --plan says what it would take."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(4, 3, 2)))
    np.save(tmp_path / "a.npy", rng.integers(0, 2, size=(4, 3, 3)))
    given = ["--data", str(tmp_path / "x.npy"), "--data", str(tmp_path / "a.npy")]
    code, out, _ = run(capsys, "kernel", "gcn", *given, "--plan")
    assert code == 0 and "memory for 4 inputs: about" in out and "blocks of" in out
    code, out, _ = run(capsys, "kernel", "gcn", *given)
    assert code == 0 and "NTK: 4 × 4" in out
    code, out, _ = run(capsys, "show", "gcn", "--input", "5,2", "--input", "data:5,5")
    assert code == 0 and "data 5 × 5" in out
    code, _, err = run(capsys, "kernel", "gcn", "--data", str(tmp_path / "x.npy"))
    assert code == 1 and "1 arrays for 2 inputs" in err
    code, _, err = run(capsys, "show", "gcn", "--input", "5,2", "--input", "data:4,5")
    assert code == 1 and "adjacency has shape (4, 5)" in err
    code, _, err = run(capsys, "show", "gcn", "--input", "5,2", "--input", "mask:4,5")
    assert code == 1 and "data:8,8" in err


def test_a_plan_of_a_sampled_net(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "kernel", "gru", "--inputs", "5", "--plan")
    assert code == 0 and "replicates" in out and "memory for 5 inputs: about" in out


@pytest.mark.slow
def test_training_of_digits_and_of_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "t.png"
    tiny = ["--widths", "16", "--seeds", "1", "--out", str(picture)]
    code, out, _ = run(capsys, "compare", "--training", "--inputs", "12", "--test", "0.25", "--lr", "0.01", *tiny)
    assert code == 0 and "mlp: 9 training and 3 test inputs" in out and picture.read_bytes()[:4] == b"\x89PNG"
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 3))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", x[:, 0])
    given = ["--data", str(tmp_path / "x.npy"), "--targets", str(tmp_path / "y.npy"), "--fall", "0.5"]
    code, out, _ = run(capsys, "compare", "mlp", "--training", *given, *tiny)
    assert code == 0 and "mlp: 6 training and 3 test inputs" in out and "fallen by 50 %" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["mlp", "--lr", "0.1"], "--lr: it is read in training only; add --training"),
        (["mlp", "--targets", "y.npy"], "--targets: it is read in training only"),
        (["mlp", "--training", "--test", "0.001"], "--test: 0 of 150 examples"),
        (["mlp", "--training", "--lr", "5", "--inputs", "12"], "lr: 5 diverges"),
        (["mlp", "--training", "--targets", "y.npy"], "--targets: digits have their own"),
        (["mlp", "--training", "--out", "t.txt"], "--out: t.txt ends in no format of pictures"),
        (["batchnorm_mlp", "--training", "--inputs", "12"], "the outputs at x are (8, 8); give one target each"),
    ],
)
def test_what_training_refuses(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "compare", *argv)
    assert code == 1 and words in err and len(err.splitlines()) == 1


# -- files of text, and what becomes of the output ------------------------------------------------------------------


TABLE = [[1.5, -2.0], [3.0, 4e-3], [0.0, 7.25]]
TABLES = [
    "1.5,-2\n3,4e-3\n0,7.25\n",
    "1.5;-2\n3;4e-3\n0;7.25\n",
    "1,5;-2\n3;4e-3\n0;7,25\n",  # decimal commas
    "1.5\t-2\n3\t4e-3\n0\t7.25\n",
    "1,5\t-2\n3\t4e-3\n0\t7,25\n",
    "1.5 -2\n  3   4e-3\n0 7.25\n",
    "# written by hand\n\na,b\n1.5,-2\n\n# the rest\n3,4e-3\n0,7.25\n",
    '"time, s";"pull; N"\n1.5;-2\n"3";"4e-3"\n0;7.25\n',
    "﻿a,b\r\n1.5,-2\r\n3,4e-3\r\n0,7.25\r\n",
    "1.5, -2,\n3, 4e-3,\n0, 7.25,\n",
]


@pytest.mark.parametrize("index", range(len(TABLES)))
def test_tables_of_text(tmp_path: Path, index: int) -> None:
    for ending, encoding in ((".csv", "utf-8"), (".tsv", "utf-16")):
        path = tmp_path / f"x{ending}"
        path.write_bytes(TABLES[index].encode(encoding))
        np.testing.assert_array_equal(load(str(path)), TABLE)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# no numbers\na;b\n\n1;2\n3;x\n", "line 5: 'x' is not a number"),
        ("a,b\n\n1,2\n# comment\n3\n", "ragged: line 5 has 1 numbers, line 3 has 2"),
        ("1,2\n3,\n", "line 2: a number is missing"),
        ('"1,5","2"\n3,4\n', "line 1: '1,5' is not a number; give numbers only, 1.5 for one and a half"),
        ("1;2.5\n1,5;3\n", "line 2: '1,5' is not a number"),
        ("a,b\n1,2\n", None),
        ("\n# nothing\n", "is empty"),
        ("a;b\n", "is empty"),
        ("1_000,2\n3,4\n", "line 1: '1_000' is not a number"),
    ],
)
def test_lines_of_a_table_are_those_of_the_file(tmp_path: Path, text: str, told: str | None) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    if told is None:
        assert load(str(path)).shape == (1, 2)
        return
    with pytest.raises(tp.ProgramError, match=re.escape(told)):
        load(str(path))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_output_that_cannot_be_written(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", full)
        assert main(["show", "mlp"]) == 1
    assert capsys.readouterr().err == "tensorprog show: its output can't be written (No space left on device)\n"
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as pipe, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", pipe)
        assert main(["show", "mlp"]) == 141
    assert capsys.readouterr().err.count("\n") == 1
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", None)
        assert main(["show", "mlp"]) == 1
    assert "no standard output" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupt_ends_the_process_in_peace(tmp_path: Path) -> None:
    """The status of the process itself: threads that still compute must not bring it down on the way out."""
    source = """
        import os, signal
        import jax.numpy as jnp

        def net(x):
            big = jnp.ones((3000, 3000))
            for _ in range(8):
                big = big @ big / 3000.0
            os.kill(os.getpid(), signal.SIGINT)
            return x
    """
    (tmp_path / "slow.py").write_text(textwrap.dedent(source))
    code = "import sys; from tensorprog.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "show", f"{tmp_path / 'slow.py'}:net", "--input", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "tensorprog show: interrupted\n")
