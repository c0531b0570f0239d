"""Protects the profiles: they load, and a setting that is misspelled or missing is one sentence."""

import shutil

import pytest
import yaml

from pipelines import profiles
from pipelines.profiles import STEPS, load_profile, profile_names
from roboimi.errors import ConfigError
from roboimi.vla.models.encoder_spec import EncoderSpec


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A copy of the profiles that a test may change."""
    folder = tmp_path / "conf"
    shutil.copytree(profiles.CONF, folder)
    monkeypatch.setattr(profiles, "CONF", folder)
    return folder


def change(conf, name, edit):
    path = conf / f"{name}.yaml"
    values = yaml.safe_load(path.read_text())
    edit(values)
    path.write_text(yaml.safe_dump(values))


def test_every_profile_loads():
    assert set(profile_names()) >= {"local", "cluster"}
    for name in profile_names():
        assert load_profile(name).name == name


def test_one_machine_runs_two_arms_side_by_side():
    assert load_profile("local").parallelism == 2
    assert load_profile("local").cluster is None
    assert load_profile("cluster").parallelism == 2


def test_the_cluster_states_every_step_and_a_pinned_encoder():
    profile = load_profile("cluster")
    assert set(profile.cluster.resources) == set(STEPS)
    assert not EncoderSpec.parse(profile.defaults.encoder).is_standin


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (lambda v: v.update(paralelism=1), "unknown settings paralelism"),
        (lambda v: v["defaults"].update(epochs=1), "unknown settings epochs"),
        (lambda v: v["defaults"].pop("encoder"), "does not fit"),
        (lambda v: v.update(parallelism=0), "must be at least 1"),
        (lambda v: v["cluster"]["resources"].pop("train_policy"), "four values for each"),
        (lambda v: v["cluster"]["resources"].update(train_policy=["1"]), "four values for each"),
        (lambda v: v["cluster"]["gpu"].update(cards=2), "unknown settings cards"),
        (lambda v: v["cluster"]["retry"].pop("max_duration"), "does not fit"),
        (lambda v: v["cluster"].update(encode_shards=0), "encode_shards=0 must be a whole number from 1"),
        (lambda v: v["cluster"].update(restarts="many"), "restarts='many' must be a whole number from 0"),
        (lambda v: v["cluster"]["timeout_s"].update(train=5), "train is no step"),
        (lambda v: v["cluster"]["secrets"][0].update(steps=["trian"]), "trian is no step"),
    ],
)
def test_a_wrong_setting_is_named(conf, edit, part):
    change(conf, "cluster", edit)
    with pytest.raises(ConfigError, match=part) as caught:
        load_profile("cluster")
    assert "cluster.yaml" in str(caught.value)


def test_an_unknown_profile_names_those_there_are():
    with pytest.raises(ConfigError, match="choose one of cluster, local, trial, or give a file"):
        load_profile("laptop")


def test_images_of_a_profile_without_images():
    with pytest.raises(ConfigError, match="runs no images"):
        load_profile("local").with_images("a", None)


def test_a_profile_can_hold_only_what_differs(tmp_path):
    path = tmp_path / "lab.yaml"
    path.write_text("base: cluster\nname: lab\ncluster: {queue: robots, gpu: {node_selector: {pool: h200}}}\n")
    lab, cluster = load_profile(str(path)), load_profile("cluster")
    assert (lab.name, lab.cluster.queue, lab.cluster.gpu.node_selector) == ("lab", "robots", {"pool": "h200"})
    assert (lab.cluster.gpu.tolerations, lab.cluster.resources) == (
        cluster.cluster.gpu.tolerations,
        cluster.cluster.resources,
    )
    assert lab.defaults == cluster.defaults


def test_the_trial_differs_from_the_cluster_in_size_alone():
    trial, cluster = load_profile("trial"), load_profile("cluster")
    assert trial.cluster.secrets == cluster.cluster.secrets
    assert trial.cluster.gpu.resource == cluster.cluster.gpu.resource
    assert trial.parallelism == cluster.parallelism
    assert trial.shard_arguments() == {
        "encode_shards": ["1/2", "2/2"],
        "eval_shards": ["1/2", "2/2"],
        "require_gpu": False,
    }


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("base: lab.yaml", "cannot be read"),
        ("base: nowhere", "There is no profile 'nowhere'"),
        ("a: [", "is not YAML"),
        ("- 1", "holds no settings"),
    ],
)
def test_a_file_that_is_no_profile_is_one_sentence(tmp_path, text, part):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=part):
        load_profile(str(path))


def test_a_profile_that_is_its_own_base_is_refused(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(f"base: {path}\n")
    with pytest.raises(ConfigError, match="is its own base"):
        load_profile(str(path))


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_profile(str(tmp_path / "site.yaml"))
