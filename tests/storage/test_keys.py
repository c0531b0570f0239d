"""Keys depend on content alone: not on key order, not on where a file lies."""

import math

import pytest

from roboimi.storage.keys import canonical_json, sha256_file, sha256_json


def test_the_order_of_keys_does_not_matter_and_values_do():
    assert sha256_json({"a": 1, "b": [1, 2]}) == sha256_json({"b": [1, 2], "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": 2})
    assert sha256_json([1, 2]) != sha256_json([2, 1])


def test_canonical_json_is_ascii_and_refuses_what_has_no_one_form():
    assert canonical_json({"ü": 0.1}) == '{"\\u00fc":0.1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"loss": math.inf})
    with pytest.raises(TypeError):
        canonical_json({"path": object()})


def test_a_file_hash_is_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
