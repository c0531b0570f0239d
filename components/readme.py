"""Writes the README of every component from its signature: `python -m components.readme [--check]`."""

import argparse
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import docstring_parser

HERE = Path(__file__).parent


def component_names() -> list[str]:
    """Every folder here that holds a component."""
    return sorted(path.parent.name for path in HERE.glob("*/component.py"))


def load_component(name: str) -> Any:
    """The component object of a folder; both have the same name."""
    return getattr(importlib.import_module(f"components.{name}.component"), name)


def render(name: str) -> str:
    """The README of one component."""
    component = load_component(name)
    spec, function = component.component_spec, component.python_func
    module = inspect.getdoc(sys.modules[function.__module__]) or ""
    image = spec.implementation.container.image
    lines = [f"# {name}", "", f"{module}", "", f"{spec.description.strip()}", "", f"Image: `{image}`", ""]
    # KFP keeps the descriptions of inputs only.
    described = {item.arg_name: item.description for item in docstring_parser.parse(function.__doc__).params}
    inputs = [(key, _type(item.type), described[key]) for key, item in (spec.inputs or {}).items()]
    outputs = [(key, _type(item.type), described[key]) for key, item in (spec.outputs or {}).items()]
    lines += _table("input", inputs) + _table("output", outputs)
    lines += ["This file is written by `python -m components.readme`.", ""]
    return "\n".join(lines)


def stale() -> list[str]:
    """The components whose README is not what their signature says."""
    names = component_names()
    return [name for name in names if not _path(name).is_file() or _path(name).read_text() != render(name)]


def main() -> int:
    """Write, or with `--check` compare."""
    parser = argparse.ArgumentParser(prog="python -m components.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a README is stale")
    if parser.parse_args().check:
        names = stale()
        if names:
            print(
                f"error: The README of {', '.join(names)} is stale: run python -m components.readme.", file=sys.stderr
            )
        return 1 if names else 0
    for name in component_names():
        _path(name).write_text(render(name))
    return 0


def _path(name: str) -> Path:
    return HERE / name / "README.md"


def _type(name: str) -> str:
    """`system.Dataset@0.0.1` is a Dataset to the reader."""
    return str(name).removeprefix("system.").partition("@")[0]


def _table(kind: str, rows: list[tuple[str, str, str | None]]) -> list[str]:
    if not rows:
        return []
    body = [f"| `{name}` | {type_} | {' '.join((text or '').split())} |" for name, type_, text in rows]
    return [f"| {kind} | type | meaning |", "| --- | --- | --- |", *body, ""]


if __name__ == "__main__":
    sys.exit(main())
