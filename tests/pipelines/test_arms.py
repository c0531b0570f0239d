"""Protects the list of arms: what may be in it, and that as a parameter it holds nothing that KFP would change."""

from dataclasses import replace

import pytest

from pipelines.arms import Arm, campaign_arms, check_unique, load_arms, only, with_reference_arms, with_training_seeds
from pipelines.profiles import load_profile
from roboimi.errors import ConfigError
from roboimi.reports.settings import setting_name


def write(tmp_path, text):
    path = tmp_path / "arms.yaml"
    path.write_text(text)
    return path


def test_the_default_arms():
    assert load_arms("projection") == [
        Arm("projection-96", ("backbone.per_view_output_dim=96",)),
        Arm("projection-192", ("backbone.per_view_output_dim=192",)),
    ]


def test_adding_an_arm_is_an_entry(tmp_path):
    path = write(tmp_path, "- arm: a\n  overrides: [x=1, 'y=[1,2]']\n- arm: b\n")
    assert load_arms(path) == [Arm("a", ("x=1", "y=[1,2]")), Arm("b", ())]


def test_reference_arms_come_first_and_only_once():
    own = Arm("blind", ("backbone=blind", "head=small"))
    arms = with_reference_arms([Arm("a", ()), own])
    assert [arm.name for arm in arms] == ["privileged_state", "a", "blind"]
    assert arms[2] is own


def test_training_seeds_make_an_arm_each_that_reports_take_for_one_setting():
    own = Arm("fixed", ("train.seed=7",))
    arms = with_training_seeds([Arm("a", ("x=1",)), own], [0, 1])
    assert arms == [Arm("a.seed-0", ("x=1", "train.seed=0")), Arm("a.seed-1", ("x=1", "train.seed=1")), own]
    assert {setting_name(arm.name) for arm in arms[:2]} == {"a"}
    assert with_training_seeds([own], [3]) == [own]


def test_on_a_cluster_every_candidate_is_trained_three_times_and_no_reference_arm_is():
    defaults = load_profile("cluster").defaults
    assert defaults.eval_episodes >= 200
    names = [arm.name for arm in campaign_arms(replace(defaults, reference_arms=True))]
    assert names[:2] == ["privileged_state", "blind"]
    assert names[2:] == [f"projection-{width}.seed-{seed}" for width in (96, 192) for seed in range(3)]
    assert len(campaign_arms(load_profile("local").defaults)) == 4


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- name: a\n  overrides: []\n", "'arm' and 'overrides' only"),
        ("- arm: a\n  type: b\n", "'arm' and 'overrides' only"),
        ("- arm: a\n- arm: a\n", "a more than once"),
        ("- arm: 'a b'\n", "letters, digits"),
        ("- arm: ../x\n", "letters, digits"),
        ("- arm: campaign\n", "not 'campaign'"),
        ("- arm: a\n  overrides: x=1\n", "list of strings"),
        ("- arm: a\n  overrides: [{x: 1}]\n", "list of strings"),
        ("- arm: a\n  overrides: [1]\n", "list of strings"),
        ("- arm: a\n  overrides: [encoder=standin]\n", "use the option --encoder"),
        ("- arm: a\n  overrides: [+dataset=x]\n", "use the option --dataset"),
        ("arm: a\n", "holds no list"),
        ("", "holds no list"),
        ("- arm: [\n", "is not YAML"),
    ],
)
def test_what_no_list_of_arms_may_hold(tmp_path, text, part):
    with pytest.raises(ConfigError, match=part) as caught:
        load_arms(write(tmp_path, text))
    assert "arms.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.yaml cannot be read"):
        load_arms(tmp_path / "nothing.yaml")


def test_only_keeps_the_order_of_the_list_and_refuses_what_is_not_there():
    arms = [Arm("a", ()), Arm("b", ()), Arm("c", ())]
    assert [arm.name for arm in only(arms, ["c", "a"])] == ["a", "c"]
    assert only(arms, []) == arms
    with pytest.raises(ConfigError, match="No arm is called d: there are a, b, c"):
        only(arms, ["a", "d"])


def test_twice_the_same_name_is_refused():
    with pytest.raises(ConfigError, match="a more than once"):
        check_unique([Arm("a", ()), Arm("a", ("x=1",))], "The campaign")
