"""Content keys: the same content gives the same key on every machine and in every version of Python."""

import hashlib
import json
from pathlib import Path
from typing import Any

PREFIX_LENGTH = 32
"""How many hex digits of a key name a folder in the store (128 bits)."""


def canonical_json(document: Any) -> str:
    """One text for one document: keys sorted, no spaces, no NaN.

    Raises:
        ValueError: the document holds NaN or infinity.
        TypeError: the document holds something that JSON has no form for.
    """
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def sha256_json(document: Any) -> str:
    """Hex SHA-256 of the canonical JSON of `document`."""
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
