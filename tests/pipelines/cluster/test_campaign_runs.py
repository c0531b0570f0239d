"""Protects how runs are named and found: the one that is meant, or a sentence."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cluster.campaign_runs import CampaignRun, campaign_runs, duration, find_run, run_name
from pipelines.cluster.kfp_api import KfpApi
from pipelines.cluster.kfp_connection import Connection
from roboimi.errors import ConfigError

PARAMETERS = {"dataset": "s3://b/d@sha256:0", "dataset_digest": "0", "experiments": [{"arm": "a", "overrides": []}]}


@pytest.fixture
def api(kfp):
    return KfpApi(Connection(kfp.url))


def named(name, **fields):
    facts = {"id": "1", "state": "RUNNING", "experiment_id": "1", "created_at": None, "finished_at": None}
    return CampaignRun(name=name, parameters={}, tasks=(), archived=False, **facts | fields)


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True), st.booleans())
def test_a_runs_name_tells_its_campaign(campaign, dirty):
    version = f"0123abc{'-dirty' if dirty else ''}-89abcdef"
    assert named(run_name(campaign, version)).campaign == campaign


def test_a_name_given_by_hand_tells_none():
    assert named("Run of roboimi-campaign (1a2b3)").campaign is None


def test_a_run_is_found_by_its_id_a_beginning_its_name_or_as_the_latest(kfp, api):
    older = kfp.add_run("first", "SUCCEEDED", PARAMETERS)
    newer = kfp.add_run("second", "RUNNING", PARAMETERS)
    kfp.add_run("of another pipeline", "RUNNING", {"x": 1})
    for text in (older, older[:8], "first"):
        assert find_run(api, text).id == older
    assert find_run(api, "latest").id == newer
    assert find_run(api, newer).arms == ["a"]


def test_the_latest_of_an_experiment_is_nobody_elses(kfp, api):
    mine = kfp.add_run("mine", "RUNNING", PARAMETERS, experiment="me")
    theirs = kfp.add_run("theirs", "RUNNING", PARAMETERS, experiment="them")
    assert find_run(api, "latest").id == theirs
    assert find_run(api, "latest", "me").id == mine
    with pytest.raises(ConfigError, match="in experiment 'me'"):
        find_run(api, theirs[:8], "me")
    with pytest.raises(ConfigError, match="correct --experiment"):
        find_run(api, "latest", "nobody")


def test_what_is_ambiguous_or_unknown_is_said(kfp, api):
    for _ in range(17):  # two of them begin with the same of sixteen digits
        kfp.add_run("again", "RUNNING", PARAMETERS)
    first = sorted(kfp.runs)
    digit = next(a[0] for a, b in itertools.pairwise(first) if a[0] == b[0])
    with pytest.raises(ConfigError, match="give more of it"):
        find_run(api, digit)
    for unknown in ("nothing-of-this-name", "00000000-0000-0000-0000-000000000000"):
        with pytest.raises(ConfigError, match="There is no"):
            find_run(api, unknown)


def test_archived_runs_and_those_of_other_pipelines_are_no_campaigns(kfp, api):
    kfp.add_run("old", "FAILED", PARAMETERS, storage_state="ARCHIVED")
    kfp.add_run("other", "RUNNING", {"x": 1})
    kept = kfp.add_run("mine", "RUNNING", PARAMETERS)
    assert [run.id for run in campaign_runs(api)] == [kept]


def test_never_is_not_1970(kfp, api):
    run = find_run(api, kfp.add_run("mine", "RUNNING", PARAMETERS))
    assert run.finished_at is None
    assert run.created_at.tzinfo is not None
    assert run.age(run.created_at + timedelta(hours=30)) == "1 d 6 h"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3600, "1 h 0 min"), (12_000, "3 h 20 min"), (90_000, "1 d 1 h")],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_every_state_that_is_not_an_end_is_active():
    assert all(named("x", state=state).active for state in ("PENDING", "RUNNING", "CANCELING", "PAUSED"))
    assert not any(named("x", state=state).active for state in ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"))
    assert run_name("c", "v", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)) == "c-v-20260102T030405Z"
