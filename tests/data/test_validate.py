"""Protects the validation: every check finds the fault planted for it, where it is, and a sound dataset passes."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from roboimi.errors import DataError
from roboimi.storage.atomic import TEMPORARY_PREFIX
from roboimi.vla.data.manifest import MANIFEST_NAME, describe_episode, resolve_dataset
from roboimi.vla.data.statistics import compute_statistics
from roboimi.vla.data.validate.check import Problem, Stage, check
from roboimi.vla.data.validate.finding import Finding
from roboimi.vla.data.validate.limits import Limits
from roboimi.vla.data.validate.registry import all_checks
from roboimi.vla.data.validate.validate import validate_dataset
from roboimi.vla.data.validate.view import EpisodeView

EPISODE = "episode_000001.hdf5"


@pytest.fixture
def ref(tiny_dataset_maker):
    return tiny_dataset_maker(image_size=(8, 8), frames=20)


def edit_manifest(ref, change):
    """Change the manifest's document and resolve it again."""
    document = json.loads((ref.root / MANIFEST_NAME).read_text())
    change(document)
    (ref.root / MANIFEST_NAME).write_text(json.dumps(document))
    return resolve_dataset(ref.root)


def edit(ref, change):
    """Change an episode as if it had been recorded so: the manifest describes it as it is."""
    with h5py.File(ref.root / EPISODE, "r+", libver="latest") as file:
        change(file)
    try:
        entry = describe_episode(ref.root / EPISODE)
    except DataError:
        entry = next(entry for entry in ref.manifest.episodes if entry.file == EPISODE)
    return edit_manifest(ref, lambda document: document["episodes"].__setitem__(1, dataclasses.asdict(entry)))


def replace(name, make):
    """Put another array in an array's place."""

    def change(file):
        values = make(file[name][()])
        del file[name]
        file.create_dataset(name, data=values, fletcher32=True, chunks=True)

    return lambda ref: edit(ref, change)


def put(name, rows, value):
    """Overwrite some values."""
    return lambda ref: edit(ref, lambda file: file[name].__setitem__(rows, value))


def damage_an_image(ref):
    """Flip a bit of the picture at frame 7 of the left camera and hash the file as it then is."""
    with h5py.File(ref.root / EPISODE) as file:
        offset = file["observations/images/left"].id.get_chunk_info(7).byte_offset
    content = bytearray((ref.root / EPISODE).read_bytes())
    content[offset] ^= 1
    (ref.root / EPISODE).write_bytes(content)
    return edit(ref, lambda file: None)


def flip_a_byte(ref):
    content = bytearray((ref.root / EPISODE).read_bytes())
    content[-1] ^= 1
    (ref.root / EPISODE).write_bytes(content)
    return ref


def cut(ref):
    path = ref.root / EPISODE
    path.write_bytes(path.read_bytes()[:4096])
    return ref


def copy_an_episode(ref):
    shutil.copy(ref.root / "episode_000000.hdf5", ref.root / EPISODE)
    return edit(ref, lambda file: None)


def add_file(name):
    def change(ref):
        (ref.root / name).write_bytes(b"")
        return ref

    return change


def link_elsewhere(ref):
    def change(file):
        del file["observations/images/left"]
        file["observations/images/left"] = h5py.ExternalLink("/etc/passwd", "/left")

    return edit(ref, change)


def soft_link(ref):
    def change(file):
        del file["observations/images/left"]
        file["observations/images/left"] = h5py.SoftLink("/observations/images/top")

    return edit(ref, change)


def external_storage(ref):
    def change(file):
        del file["observations/qvel"]
        file.create_dataset("observations/qvel", (20, 14), "f4", external=[("/etc/hostname", 0, 1120)])

    return edit(ref, change)


def virtual_dataset(ref):
    def change(file):
        del file["observations/qvel"]
        layout = h5py.VirtualLayout((20, 14), "f4")
        layout[:] = h5py.VirtualSource("other.hdf5", "secret", (20, 14))
        file.create_virtual_dataset("observations/qvel", layout)

    return edit(ref, change)


def remove(name):
    return lambda ref: edit(ref, lambda file: file.__delitem__(name))


def in_split(train, validation):
    def change(ref):
        split = {"train": train, "validation": validation}
        return edit_manifest(ref, lambda document: document.update(split=split))

    return change


FILES = [f"episode_00000{index}.hdf5" for index in range(3)]
LEFT = "observations/images/left"

FAULTS = [
    ("E01-damaged-data", damage_an_image, EPISODE, (7, 7)),
    ("E01-unopenable", cut, EPISODE, None),
    ("E02-content-hash", flip_a_byte, EPISODE, None),
    ("E02-content-hash", cut, EPISODE, None),
    ("E02-content-hash", lambda ref: [(ref.root / EPISODE).unlink(), ref][1], EPISODE, None),
    ("E03-unlisted-episode", add_file("episode_000003.hdf5"), "episode_000003.hdf5", None),
    ("E03-unlisted-episode", add_file("._episode_000001.hdf5"), "._episode_000001.hdf5", None),
    ("W03-other-file", add_file("notes.txt"), "notes.txt", None),
    ("W03-other-file", add_file(f"{TEMPORARY_PREFIX}x"), f"{TEMPORARY_PREFIX}x", None),
    ("E04-links", link_elsewhere, EPISODE, None),
    ("E04-links", soft_link, EPISODE, None),
    ("E04-links", external_storage, EPISODE, None),
    ("E04-links", virtual_dataset, EPISODE, None),
    ("E06-missing-array", remove("action"), EPISODE, None),
    ("E06-missing-array", remove("observations/timestamp"), EPISODE, None),
    ("E06-missing-array", remove("observations/environment_state"), EPISODE, None),
    ("E06-camera-set", remove(LEFT), EPISODE, None),
    ("E06-camera-set", lambda ref: edit(ref, lambda f: f.move(LEFT, "observations/images/front")), EPISODE, None),
    ("E06-camera-set", lambda ref: edit(ref, lambda f: f.copy(LEFT, "observations/images/front")), EPISODE, None),
    ("E07-shape", replace("observations/qpos", lambda q: q[:, :13]), EPISODE, None),
    ("E07-shape", replace(LEFT, lambda images: images[..., :1]), EPISODE, None),
    ("E07-shape", replace(LEFT, lambda images: images.reshape(20, -1)), EPISODE, None),
    ("E07-dtype", replace(LEFT, lambda images: images / np.float32(255)), EPISODE, None),
    ("E07-dtype", replace("action", lambda action: action.astype(np.int32)), EPISODE, None),
    ("E08-equal-lengths", replace("observations/qpos", lambda q: q[:-1]), EPISODE, (19, 19)),
    ("E08-equal-lengths", replace(LEFT, lambda images: images[:-1]), EPISODE, (19, 19)),
    ("E09-finite", put("action", (slice(4, 7), 3), np.nan), EPISODE, (4, 6)),
    ("E09-finite", put("observations/environment_state", (2, 0), np.inf), EPISODE, (2, 2)),
    (
        "E09-finite",
        replace("action", lambda a: np.where(np.arange(20)[:, None] == 9, 1e300, a.astype(float))),
        EPISODE,
        (9, 9),
    ),
    ("E09-finite", put("observations/timestamp", 5, np.nan), EPISODE, (5, 5)),
    ("E11-timestamps", put("observations/timestamp", 5, 4 / 25), EPISODE, (4, 5)),
    ("E11-timestamps", put("observations/timestamp", 5, 0.0), EPISODE, (4, 5)),
    ("E13-declared-rate", lambda ref: edit(ref, lambda f: f.attrs.__setitem__("fps", 50)), EPISODE, None),
    ("E19-image-size", replace(LEFT, lambda images: images[:, :4]), EPISODE, None),
    ("E21-action-bounds", put("action", (3, 13), 2e4), EPISODE, (3, 3)),
    ("E29-same-bytes", copy_an_episode, EPISODE, None),
    ("E29-split", in_split([], FILES), None, None),
    ("E29-split", in_split(FILES, [EPISODE]), EPISODE, None),
    ("E29-split", in_split([FILES[0]], [FILES[2]]), EPISODE, None),
    ("E29-split", in_split([*FILES, "episode_000009.hdf5"], []), "episode_000009.hdf5", None),
    ("W29-no-validation-split", in_split(FILES, []), None, None),
]


@pytest.mark.parametrize(("code", "plant", "episode", "frames"), FAULTS)
def test_a_planted_fault_is_found_under_its_code_where_it_is(ref, code, plant, episode, frames):
    report = validate_dataset(plant(ref))
    found = [finding for finding in report.findings if finding.code == code]
    assert found, [finding.sentence for finding in report.findings]
    assert {finding.episode for finding in found} == {episode}
    assert {finding.frames for finding in found} == {frames}
    assert report.passed == code.startswith("W")


def test_every_check_has_a_planted_fault():
    assert {code for code, *_ in FAULTS} | {"E10-minimum-length"} <= set(all_checks())


def test_a_sound_dataset_has_no_finding(ref):
    report = validate_dataset(ref)
    assert report.findings == ()
    assert report.passed
    assert (report.episodes, report.frames, report.unfinished) == (3, 60, ())
    assert report.statistics == compute_statistics(ref)
    report.raise_if_failed()


def test_a_short_episode_is_found(tiny_dataset_maker):
    ref = tiny_dataset_maker(image_size=(4, 4), frames=[20, 15, 16])
    (finding,) = validate_dataset(ref).findings
    assert (finding.code, finding.episode) == ("E10-minimum-length", EPISODE)
    assert validate_dataset(ref, Limits(min_frames=15)).passed


def test_action_bounds_that_are_given_are_held_to(ref):
    limits = Limits(action_low=(-10.0,) * 14, action_high=(10.0,) * 13 + (0.0,), limit_margin=0.0)
    found = validate_dataset(ref, limits).findings
    assert {finding.code for finding in found} == {"E21-action-bounds"}
    assert {finding.dimension for finding in found} == {"/action [13] action_13"}


def test_an_error_names_the_dimension(ref):
    found = validate_dataset(put("action", (slice(4, 7), 3), np.nan)(ref)).findings
    assert [finding.dimension for finding in found] == ["/action [3] action_3"]


def test_a_broken_episode_does_not_hide_another(ref):
    (ref.root / "episode_000000.hdf5").write_bytes(b"")
    ref = put("action", (4, 0), np.nan)(ref)
    found = {(finding.code, finding.episode) for finding in validate_dataset(ref).findings}
    assert ("E01-unopenable", "episode_000000.hdf5") in found
    assert ("E09-finite", EPISODE) in found


def test_a_check_that_damage_stops_is_a_finding(ref):
    with h5py.File(ref.root / EPISODE) as file:
        offset = file["action"].id.get_chunk_info(0).byte_offset
    content = bytearray((ref.root / EPISODE).read_bytes())
    content[offset] ^= 1
    (ref.root / EPISODE).write_bytes(content)

    @check("E99-reader", Stage.VALUES)
    def reader(episode, limits):
        yield Problem(f"the first action is {episode.array('action')[0]}", "look")

    view = EpisodeView(ref, ref.manifest.episodes[1])
    (finding,) = reader.run(view, Limits()).findings
    view.close()
    assert (finding.code, finding.severity, finding.episode) == ("E99-reader", "ERR", EPISODE)
    assert "too damaged" in finding.what


def test_structure_errors_are_reported_together_and_end_the_episode(ref):
    def change(file):
        file["observations/qpos"][0, 0] = np.nan
        del file["observations/images/left"], file["observations/timestamp"]

    report = validate_dataset(edit(ref, change))
    assert {finding.code for finding in report.findings} == {"E06-missing-array", "E06-camera-set"}
    assert report.unfinished == (EPISODE,)
    assert report.statistics is None


def test_failure_is_one_sentence(ref):
    report = validate_dataset(remove("observations/images/left")(ref))
    with pytest.raises(DataError, match=r"has 1 errors; the first: .*E06-camera-set.*left") as caught:
        report.raise_if_failed()
    assert "\n" not in str(caught.value)


def test_verdict_and_findings_are_written_beside_the_manifest(ref):
    ref = put("action", (4, 0), np.nan)(ref)
    report = validate_dataset(ref)
    document = json.loads((ref.root / "VALIDATION.json").read_text())
    assert document["dataset_digest"] == ref.digest
    assert (document["passed"], document["errors"], document["warnings"]) == (False, 1, 0)
    lines = (ref.root / "findings.jsonl").read_text().splitlines()
    assert tuple(Finding.from_dict(json.loads(line)) for line in lines) == report.findings
    assert resolve_dataset(ref.root).digest == ref.digest


def test_a_dataset_that_passed_is_recognised_until_it_is_touched(ref):
    first = validate_dataset(ref)
    assert not first.recognised
    second = validate_dataset(ref)
    assert second.recognised
    assert dataclasses.replace(second, recognised=False) == first
    assert not validate_dataset(ref, Limits(min_frames=3)).recognised
    assert not validate_dataset(ref, again=True).recognised


def test_a_byte_changed_after_validation_is_seen(ref):
    validate_dataset(ref)
    before = (ref.root / EPISODE).stat()
    flip_a_byte(ref)
    os.utime(ref.root / EPISODE, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    report = validate_dataset(ref)
    assert not report.recognised
    assert "E02-content-hash" in [finding.code for finding in report.errors]


def test_a_file_added_after_validation_is_seen(ref):
    validate_dataset(ref)
    (ref.root / "episode_000099.hdf5").write_bytes(b"")
    assert [finding.code for finding in validate_dataset(ref).errors] == ["E03-unlisted-episode"]


def test_warnings_are_recognised_too(ref):
    (ref.root / "notes.txt").write_text("")
    first = validate_dataset(ref)
    second = validate_dataset(ref)
    assert second.recognised
    assert second.findings == first.findings
    assert len(second.warnings) == 1


def test_findings_that_were_lost_are_found_again(ref):
    (ref.root / "notes.txt").write_text("")
    first = validate_dataset(ref)
    (ref.root / "findings.jsonl").write_text("")
    second = validate_dataset(ref)
    assert not second.recognised
    assert second.findings == first.findings


def test_a_failed_validation_is_never_recognised(ref):
    (ref.root / "episode_000099.hdf5").write_bytes(b"")
    assert not validate_dataset(ref).passed
    assert not validate_dataset(ref).recognised


def test_findings_name_an_episode_to_people():
    finding = Finding("E09-finite", "ERR", "1 value is NaN", "drop it", EPISODE, (3, 3), "/action [0]")
    assert finding.sentence == f"ERR E09-finite {EPISODE}, frame 3, /action [0]: 1 value is NaN; drop it."


def test_data_and_validation_need_no_torch(ref):
    script = f"""
import sys
import roboimi.vla.data.import_episodes, roboimi.vla.data.simple_robot_dataset, roboimi.vla.data.sampler
from roboimi.vla.data.manifest import resolve_dataset
from roboimi.vla.data.validate.validate import validate_dataset
assert validate_dataset(resolve_dataset({ref.text!r})).passed
assert not {{"torch", "kfp", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
