"""Protects the form of all components: thin, light to import, documented, with the arguments all share."""

import ast
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from components import readme

ROOT = Path(__file__).resolve().parents[2]
NAMES = readme.component_names()


def function_of(name: str) -> ast.FunctionDef:
    source = textwrap.dedent(inspect.getsource(readme.load_component(name).python_func))
    return ast.parse(source).body[0]


def test_there_is_a_component_for_every_step():
    from pipelines.profiles import STEPS

    assert sorted(STEPS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_body_is_at_most_forty_lines(name):
    function = function_of(name)
    body = function.body[1:]  # without the docstring
    assert body[-1].end_lineno - body[0].lineno + 1 <= 40


@pytest.mark.parametrize("name", NAMES)
def test_a_body_is_one_campaign_step(name):
    """Whatever a component does, it does within its launch record."""
    body = [node for node in function_of(name).body[1:] if not isinstance(node, ast.Import | ast.ImportFrom)]
    assert [type(node) for node in body] == [ast.With]
    assert body[0].items[0].context_expr.func.id == "campaign_step"


@pytest.mark.parametrize("name", NAMES)
def test_only_kfp_and_the_standard_library_are_imported_at_the_top(name):
    tree = ast.parse((ROOT / "components" / name / "component.py").read_text())
    modules = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert modules == {"kfp", "components.images"}


@pytest.mark.parametrize("name", NAMES)
def test_every_step_takes_the_store_and_the_job_id(name):
    assert {"store", "job_id"} <= set(readme.load_component(name).component_spec.inputs)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_installed_when_a_step_starts(name):
    command = " ".join(readme.load_component(name).component_spec.implementation.container.command)
    assert "pip" not in command


def test_the_readmes_are_what_the_signatures_say():
    assert readme.stale() == []


def test_a_changed_readme_is_noticed(monkeypatch, tmp_path):
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "component.py").touch()
        (tmp_path / name / "README.md").write_text(readme.render(name))
    monkeypatch.setattr(readme, "HERE", tmp_path)
    assert readme.stale() == []
    (tmp_path / NAMES[0] / "README.md").write_text("# another\n")
    (tmp_path / NAMES[1] / "README.md").unlink()
    assert readme.stale() == NAMES[:2]


def test_importing_all_components_loads_no_deep_learning_library():
    code = "import sys; from components import readme; [readme.load_component(n) for n in readme.component_names()]"
    code += "; assert not {'torch', 'transformers', 'mujoco'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
