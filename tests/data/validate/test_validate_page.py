"""Protects what people see: one page that needs nothing else, one table, one exit code, and a copy that is the same."""

import json
import re

import h5py
import numpy as np
import pytest

from roboimi.cli import main
from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.manifest import MANIFEST_NAME, describe_episode, resolve_dataset, write_manifest
from roboimi.vla.data.validate.contract_file import read_contract_file
from roboimi.vla.data.validate.dataset_checks import PAGE_NAME, VALIDATION_NAME
from roboimi.vla.data.validate.drawings import histogram, ranges
from roboimi.vla.data.validate.limits import Limits
from roboimi.vla.data.validate.robot import with_robot
from roboimi.vla.data.validate.validate import validate_dataset
from tests.data.validate.robot_data import CONTRACT, LIMITS

EPISODE = "episode_000001.hdf5"


def change(ref, edit):
    """Change an episode as if it had been recorded so."""
    with h5py.File(ref.root / EPISODE, "r+", libver="latest") as file:
        edit(file)
    entries = [describe_episode(ref.path(entry)) for entry in ref.manifest.episodes]
    write_manifest(
        ref.root, contract=ref.contract, source=ref.manifest.source, split=ref.manifest.split, episodes=entries
    )
    return resolve_dataset(ref.root)


def black(file):
    file["observations/images/left"][5:9] = 0
    file["<script>alert(1)</script>"] = np.zeros(3)


def one_big_chunk(file):
    images = file["observations/images/left"][()]
    del file["observations/images/left"]
    file.create_dataset("observations/images/left", data=images, chunks=images.shape, compression="gzip")


def test_the_page_stands_alone_and_shows_each_finding(small_robot_dataset):
    ref = change(small_robot_dataset, black)
    report = validate_dataset(ref, LIMITS)
    page = (ref.root / PAGE_NAME).read_text()
    assert [finding.code for finding in report.errors] == ["E16-blank-image"]
    assert len(page) < 5_000_000
    assert not re.search(r"<script|https?://|<link|@import|url\(", page)
    assert "E16-blank-image" in page
    assert "frames 5 to 8" in page
    assert page.count('<img src="data:image/webp;base64,') == 3 + 3 * 8
    for camera in CONTRACT.cameras:
        assert f'alt="{camera}, frame 0"' in page
    assert page.count('<svg class="range"') == 14
    assert page.count('<svg class="histogram"') == 1 + 14


def test_the_page_is_written_where_nothing_can_be_read(small_robot_dataset):
    for entry in small_robot_dataset.manifest.episodes:
        small_robot_dataset.path(entry).write_bytes(b"")
    validate_dataset(small_robot_dataset, LIMITS)
    assert "E01-unopenable" in (small_robot_dataset.root / PAGE_NAME).read_text()


def test_drawings_take_whatever_there_is():
    assert "nan" not in histogram(np.array([1.0, np.nan, np.inf]), label="x")
    assert histogram(np.array([]), label="x") == ""
    assert "&lt;b&gt;" in histogram(np.array([1.0, 2.0]), label="<b>")
    inside, outside, unknown = ranges([(0, 1), (0, 3), (1, 1)], [(-1, 2), (-1, 2), None], [0.05] * 3, label="x")
    assert "band" in inside
    assert "beyond" in outside
    assert "track" not in unknown


def test_the_command_shows_findings_and_fails(small_robot_dataset, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    ref = change(small_robot_dataset, black)
    assert main(["validate", str(ref.root), "--workers", "1"]) == 1
    out = capsys.readouterr().out
    for text in ("E16-blank-image", "5-8", "the picture is black", "FAILED", "S=14 A=14 V=3", PAGE_NAME):
        assert text in out
    assert re.search(r"not applicable.*E21-joint-limits", out)


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--fix"], 2, "There is no --fix, because data is never edited silently"),
        (["--workers", "0"], 2, "0 workers"),
        (["--contract", "/nowhere.yaml"], 2, "/nowhere.yaml cannot be read"),
    ],
)
def test_what_cannot_be_is_one_sentence(small_robot_dataset, capsys, options, code, sentence):
    assert main(["validate", str(small_robot_dataset.root), *options]) == code
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_episodes_without_a_manifest_are_unverifiable(small_robot_dataset, capsys):
    (small_robot_dataset.root / MANIFEST_NAME).unlink()
    assert main(["validate", str(small_robot_dataset.root)]) == 3
    error = capsys.readouterr().err
    assert "unverifiable" in error
    assert f"roboimi dataset import {small_robot_dataset.root}" in error


def test_a_repacked_dataset_has_the_same_numbers_in_a_better_layout(small_robot_dataset, tmp_path, capsys):
    ref = change(small_robot_dataset, one_big_chunk)
    assert [finding.code for finding in validate_dataset(ref, LIMITS).findings] == ["W05-chunk-layout"]
    before = {path.name: path.read_bytes() for path in ref.root.glob("*.hdf5")}
    out = tmp_path / "copy"
    assert main(["validate", str(ref.root), "--repack", str(out)]) == 0
    copy = resolve_dataset(out)
    assert f"repacked: {copy.text}" in capsys.readouterr().out
    assert validate_dataset(copy, LIMITS).findings == ()
    assert {path.name: path.read_bytes() for path in ref.root.glob("*.hdf5")} == before
    assert copy.manifest.split == ref.manifest.split
    with h5py.File(ref.root / EPISODE) as old, h5py.File(out / EPISODE) as new:
        assert dict(old.attrs) == dict(new.attrs)
        names = []
        new.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in names:
            assert np.array_equal(old[name][()], new[name][()])
            assert new[name].fletcher32
        assert new["observations/images/left"].chunks == (1, 32, 32, 3)


def test_a_repack_never_overwrites_and_never_copies_errors(small_robot_dataset, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    assert main(["validate", str(small_robot_dataset.root), "--repack", str(tmp_path / "full")]) == 3
    assert "nothing is overwritten" in capsys.readouterr().err
    ref = change(small_robot_dataset, black)
    assert main(["validate", str(ref.root), "--repack", str(tmp_path / "new")]) == 3
    assert "nothing was repacked" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_statistics_that_were_changed_by_hand_are_found(small_robot_dataset):
    validate_dataset(small_robot_dataset, LIMITS)
    path = small_robot_dataset.root / VALIDATION_NAME
    document = json.loads(path.read_text())
    document["statistics"]["action"]["mean"][0] += 1e-9
    path.write_text(json.dumps(document))
    report = validate_dataset(small_robot_dataset, LIMITS)
    assert [(finding.code, finding.dimension) for finding in report.findings] == [("E32-stale-statistics", "action")]


def test_a_contract_file_is_held_to(small_robot_dataset, tmp_path):
    path = tmp_path / "contract.yaml"
    path.write_text("contract: {fps: 50, state_dim: 14}\nlimits: {min_frames: 50, sim: false, grippers: [6, 13]}\n")
    limits = read_contract_file(path, small_robot_dataset)
    found = {finding.code for finding in validate_dataset(small_robot_dataset, limits).errors}
    assert found == {"E07-contract", "E10-minimum-length"}
    assert limits.sim is False
    assert limits.gripper_dims(("a",) * 14) == (6, 13)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("contract: {fpss: 50}", "contract.fpss"),
        ("limits: {sim: 3}", "sim is 3"),
        ("limits: [1]", "no mapping"),
        ("rubbish: 1", "no other part"),
        ("a: [", "no YAML"),
        ("!!python/object/apply:os.system ['true']", "no YAML"),
        ("robot: {joints: {}}", "without an mjcf"),
        ("robot: {mjcf: nowhere.xml}", "cannot be compiled"),
    ],
)
def test_a_wrong_contract_file_is_one_sentence(small_robot_dataset, tmp_path, text, sentence, capsys):
    path = tmp_path / "contract.yaml"
    path.write_text(text)
    assert main(["validate", str(small_robot_dataset.root), "--contract", str(path)]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_joint_ranges_come_from_an_mjcf(tmp_path):
    arm = '<body><joint name="{}" type="hinge" {}/><geom size="1"/></body>'
    hinges = arm.format("a/one", 'range="-1 2" limited="true"') + arm.format("two", "")
    path = tmp_path / "robot.xml"
    path.write_text(f'<mujoco><compiler angle="radian"/><worldbody>{hinges}</worldbody></mujoco>')
    names = ("one", "two", "hand_gripper")
    contract = DatasetContract(3, 3, 0, ("top",), 8, 8, 10, names, names)
    limits = with_robot(Limits(), path, contract, {"one": "a/one"})
    assert limits.state_low == limits.action_low == (-1.0, -1e9, 0.0)
    assert limits.state_high == (2.0, 1e9, 1.0)
