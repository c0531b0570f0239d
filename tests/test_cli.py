"""The command `roboimi` as a person types it: what it makes, and one sentence where something is wrong."""

import pytest

from roboimi.cli import main
from roboimi.vla.data.manifest import MANIFEST_NAME


def test_a_sound_dataset_passes(tiny_dataset, capsys):
    assert main(["validate", str(tiny_dataset.root)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("passed: ")
    assert f"@sha256:{tiny_dataset.digest}" in out


def test_a_damaged_episode_fails_with_its_code_and_name(tiny_dataset_maker, capsys):
    ref = tiny_dataset_maker()
    path = ref.path(ref.manifest.episodes[0])
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert main(["validate", str(ref.root)]) == 1
    out = capsys.readouterr().out
    assert "FAILED" in out
    assert "E02" in out


def test_episodes_of_somebody_else_become_a_dataset(tiny_dataset_maker, capsys):
    ref = tiny_dataset_maker()
    (ref.root / MANIFEST_NAME).unlink()
    assert main(["dataset", "import", str(ref.root)]) == 0
    assert capsys.readouterr().out.startswith(f"{ref.root}@sha256:")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["validate", "/nowhere"], 3, "/nowhere is not there"),
        (["dataset", "import", "/nowhere"], 3, "/nowhere is not there"),
        (["record", "/proc/nowhere"], None, "nowhere"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments, code, sentence, capsys):
    result = main(arguments)
    error = capsys.readouterr().err
    assert result == code if code else result != 0
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1
