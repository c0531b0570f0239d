"""Where the files of the images lie."""

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "images"
REQUIREMENTS = ROOT / "requirements"


def pyproject() -> dict[str, Any]:
    """The project's metadata."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
