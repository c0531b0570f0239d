"""Protects the gate of a campaign: a good dataset gets its pointer, a bad one stops everything with one sentence."""

from pathlib import Path

import h5py
import pytest
from kfp import dsl

from components.validate_dataset.component import validate_dataset
from roboimi.campaign_step import read_pointer

KEY = "campaigns/job/campaign/validate.json"


def run(ref_text, digest, store, artifact):
    outputs = {"validated": artifact(dsl.Dataset, "validated"), "findings": artifact(dsl.Markdown, "findings")}
    outputs["page"] = artifact(dsl.HTML, "page")
    arguments = {"dataset": ref_text, "dataset_digest": digest, "store": store.uri, "job_id": "job"}
    try:
        validate_dataset.python_func(**arguments, **outputs)
    finally:
        outputs["record"] = store.read_json(KEY)
    return outputs


def test_a_good_dataset(tiny_dataset, store, artifact):
    outputs = run(tiny_dataset.text, tiny_dataset.digest, store, artifact)
    pointer = read_pointer(outputs["validated"].path)
    assert (pointer["uri"], pointer["digest"]) == (tiny_dataset.text, tiny_dataset.digest)
    page = Path(outputs["page"].path).read_text()
    assert page == (tiny_dataset.root / "validation.html").read_text()
    assert "<html" in page
    assert (pointer["episodes"], pointer["frames"]) == (3, 60)
    record = outputs["record"]
    assert (record["status"], record["dataset"], record["episodes"]) == ("succeeded", tiny_dataset.text, 3)
    assert record["result"].startswith("3 episodes, 60 frames")


def test_a_second_campaign_recognises_it(tiny_dataset, store, artifact):
    assert run(tiny_dataset.text, tiny_dataset.digest, store, artifact)["record"]["recognised"] is False
    assert run(tiny_dataset.text, tiny_dataset.digest, store, artifact)["record"]["recognised"] is True


def test_a_damaged_episode_stops_the_campaign(tiny_dataset, store, artifact, capsys):
    path = tiny_dataset.root / tiny_dataset.manifest.episodes[1].file
    with h5py.File(path, "r+") as file:
        del file["observations/images/left"]
    with pytest.raises(SystemExit) as caught:
        run(tiny_dataset.text, tiny_dataset.digest, store, artifact)
    assert caught.value.code == 3
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert path.name in error
    record = store.read_json(KEY)
    assert (record["status"], record["failure_class"]) == ("failed", "bad-data")
    assert path.name in Path(artifact(dsl.Markdown, "findings").path).read_text()
    assert not Path(artifact(dsl.Dataset, "validated").path).exists()


def test_a_dataset_that_is_not_the_one_submitted(tiny_dataset, store, artifact, capsys):
    with pytest.raises(SystemExit):
        run(str(tiny_dataset.root), "0" * 64, store, artifact)
    assert "submit it again" in capsys.readouterr().err


def test_a_missing_folder(tmp_path, store, artifact, capsys):
    with pytest.raises(SystemExit):
        run(str(tmp_path / "nothing"), "", store, artifact)
    assert str(tmp_path / "nothing") in capsys.readouterr().err
