"""Nothing in the project reads or writes pickles: a checkpoint from elsewhere must not be able to run code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("roboimi", "components", "pipelines", "benchmarks", "scripts", "tests")
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "torch.export.load",
    "yaml.load",
    "yaml.unsafe_load",
}
ROUND_TRIPS = "tests/data/"
"""Tests that send our own objects through pickle in memory, because worker processes do."""


def findings(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.split(".")[0] in FORBIDDEN_MODULES:
                found.append(node.module)
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if name in FORBIDDEN_CALLS]
        elif isinstance(node, ast.Call):
            found += call_findings(node)
    return found


def call_findings(node: ast.Call) -> list[str]:
    found = [
        f"allow_pickle at line {node.lineno}"
        for keyword in node.keywords
        if keyword.arg == "allow_pickle" and getattr(keyword.value, "value", None) is not False
    ]
    name = dotted(node.func)
    return [*found, f"{name} at line {node.lineno}"] if name in FORBIDDEN_CALLS else found


def dotted(node: ast.expr) -> str:
    """`torch.jit.load` of such an expression; what is no plain name is a question mark."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def python_files() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def test_no_file_of_the_project_uses_pickle():
    files = python_files()
    assert len(files) > 50
    offences = {
        str(path.relative_to(ROOT)): found
        for path in files
        if not str(path.relative_to(ROOT)).startswith(ROUND_TRIPS) and (found := findings(path.read_text()))
    }
    assert offences == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "import torch\ntorch.load('x', weights_only=True)",
        "from torch import load",
        "torch.save({}, 'x')",
        "torch.jit.load('x')",
        "np.load('x', allow_pickle=True)",
        "np.load('x', allow_pickle=flag)",
        "yaml.load(text, Loader)",
    ],
)
def test_each_way_is_found(source):
    assert findings(source)


@pytest.mark.parametrize(
    "source",
    ["np.load('x')", "np.load('x', allow_pickle=False)", "safetensors.torch.load(data)", "yaml.safe_load(text)"],
)
def test_other_readers_are_not(source):
    assert findings(source) == []
