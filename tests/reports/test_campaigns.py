"""`roboimi compare`: the arms of several campaigns side by side, and one sentence for what cannot be compared."""

import json

import pytest

from roboimi.cli import main
from roboimi.errors import ConfigError
from roboimi.reports.campaigns import RunReference, compare_campaigns


def solved(count, of=50):
    return [index < count for index in range(of)]


@pytest.fixture
def two(made, campaign_maker):
    """Two campaigns in one store: arm a fails mostly in the first, arm a2 succeeds mostly in the second."""
    made.add("a", "b=1", outcomes=solved(10))
    other = campaign_maker(made, "20261122-090000-cd34")
    other.add("a2", "b=2", outcomes=solved(40))
    return made, other


def path_of(campaign) -> str:
    return f"{campaign.store.uri}/campaigns/{campaign.job_id}"


def test_arms_of_two_campaigns_are_tested_on_their_shared_seeds(two, capsys):
    assert main(["compare", *(path_of(campaign) for campaign in two)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    first, second = (campaign.job_id for campaign in two)
    assert f"{second}/a2 is better than {first}/a" in shown
    assert "40 against 10 of 50 shared seeds" in shown
    assert "these two checkpoints" in shown


def test_html_and_json_hold_the_same(two, tmp_path, capsys):
    page, figures = tmp_path / "both.html", tmp_path / "both.json"
    assert main(["compare", *(path_of(item) for item in two), "--html", str(page), "--json", str(figures)]) == 0
    document = json.loads(figures.read_text())
    assert [arm["arm"] for arm in document["arms"]] == [f"{two[0].job_id}/a", f"{two[1].job_id}/a2"]
    assert document["verdict"]["headline"] in page.read_text()
    assert "<script" not in page.read_text()


def test_one_campaign_is_shown_as_it_is(two, capsys):
    assert main(["compare", path_of(two[0])]) == 0
    assert "nothing to compare a with" in " ".join(capsys.readouterr().out.split())


def test_arms_are_found_without_a_report_and_with_one(two):
    reference = RunReference.parse(path_of(two[0]))
    assert reference.experiments() == [{"arm": "a", "overrides": []}]
    two[0].store.write_json(
        f"campaigns/{two[0].job_id}/report.json", {"arms": [{"arm": "a", "overrides": ["b=1"], "other": 1}]}
    )
    assert reference.experiments() == [{"arm": "a", "overrides": ["b=1"]}]


def test_trainings_of_one_recipe_in_two_campaigns_are_one_setting(made, campaign_maker):
    other = campaign_maker(made, "20261122-090000-cd34")
    for campaign, seeds in ((made, (0, 1)), (other, (2, 3))):
        for seed in seeds:
            campaign.add(f"wide.seed-{seed}", "b=1", f"train.seed={seed}", outcomes=solved(40 + seed))
            campaign.add(f"narrow.seed-{seed}", "b=2", f"train.seed={seed}", outcomes=solved(10 + seed))
        arms = [{"arm": arm.name, "overrides": list(arm.overrides)} for arm in campaign.arms]
        campaign.store.write_json(f"campaigns/{campaign.job_id}/report.json", {"arms": arms})
    report = compare_campaigns([RunReference.parse(path_of(item)) for item in (made, other)])
    assert [(item.name, len(item.rates)) for item in report.settings] == [("wide", 4), ("narrow", 4)]
    assert report.setting_pairs[0].better == "wide"


def test_shared_rollouts_are_shown_once(made, campaign_maker):
    made.add("a", "b=1", outcomes=solved(10))
    other = campaign_maker(made, "20261122-090000-cd34")
    for step in ("train", "evaluate"):
        record = made.store.read_json(f"campaigns/{made.job_id}/a/{step}.json")
        made.store.write_json(f"campaigns/{other.job_id}/a/{step}.json", record)
    report = compare_campaigns([RunReference.parse(path_of(item)) for item in (made, other)])
    (arm,) = report.arms
    assert arm.notes == (f"also in {other.job_id}",)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "names no campaign"),
        (["{store}/campaigns/none"], "has no campaign 'none': the newest there are"),
        (["{first}", "{first}/"], "named twice"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(two, capsys, arguments, says):
    names = {"store": two[0].store.uri, "first": path_of(two[0])}
    assert main(["compare", *(argument.format(**names) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert says in captured.err


def test_rollouts_in_different_tasks_are_refused(two):
    prefix = two[1].store.read_json(f"campaigns/{two[1].job_id}/a2/evaluate.json")["rollouts"]
    folder = two[1].store.fetch(prefix)
    document = json.loads((folder / "RESULT.json").read_text())
    (folder / "RESULT.json").write_text(json.dumps({**document, "task": {"env_id": "another"}}))
    with pytest.raises(ConfigError, match="different tasks"):
        compare_campaigns([RunReference.parse(path_of(item)) for item in two])
