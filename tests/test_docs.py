"""Documents are true: their Python runs, the recursions pasted into them are what is printed, notebooks execute."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient

import tensorprog as tp
from tensorprog.nets import net

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(path: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(path.read_text(encoding="utf-8")) if kind == language]


@pytest.mark.slow
@pytest.mark.parametrize("path", ["README.md"])
def test_python_in_documents_runs(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    space: dict[str, object] = {}
    for block in blocks(ROOT / path, "python"):
        exec(compile(block, path, "exec"), space)
    assert "C(s{i}) = V_tanh C(g{i})" in capsys.readouterr().out


@pytest.mark.slow
def test_models_of_other_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    """`docs/models.md` runs, in float32 as its readers have it, and shows the plan that is printed."""
    space: dict[str, object] = {}
    with jax.enable_x64(False):
        for block in blocks(ROOT / "docs" / "models.md", "python"):
            exec(compile(block, "models.md", "exec"), space)
    assert capsys.readouterr().out == blocks(ROOT / "docs" / "models.md", "text")[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::tensorprog.errors.KernelWarning")
def test_the_page_of_imports_runs() -> None:
    space: dict[str, object] = {}
    for block in blocks(ROOT / "docs" / "import.md", "python"):
        exec(compile(block, "docs/import.md", "exec"), space)


@pytest.mark.slow
def test_the_page_of_predictions_runs(capsys: pytest.CaptureFixture[str]) -> None:
    space: dict[str, object] = {}
    for block in blocks(ROOT / "docs" / "predict.md", "python"):
        exec(compile(block, "docs/predict.md", "exec"), space)
    assert "LOO RMSE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "shape"), [("mlp", (10,)), ("resnet_mlp", (10,)), ("rnn", (8, 16)), ("rnn_mean", (8, 16))]
)
def test_recursions_in_documents_are_what_is_printed(name: str, shape: tuple[int, ...]) -> None:
    printed = str(tp.recursion(net(name).program(tp.Input(*shape))))
    assert printed in [block.rstrip("\n") for block in blocks(ROOT / "docs" / "recursions.md", "text")]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code" and "print(" in cell.source)


def test_the_page_of_architectures_is_what_they_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    page = importlib.import_module("make_nets").page()
    assert (ROOT / "docs" / "nets.md").read_text(encoding="utf-8") == page, "run python docs/make_nets.py"
