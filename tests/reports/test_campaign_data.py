"""A campaign's data: every expected arm is there, with its figures or with the reason why it has none."""

import pytest

from roboimi.errors import EncoderError, NonFiniteError, RenderError
from roboimi.reports.arm_data import BLIND, CANDIDATE, CONTROL, role_of
from roboimi.reports.campaign_data import collect
from roboimi.reports.summary import metrics as summary_metrics


def arms_of(campaign, status=""):
    report = collect(campaign.store, campaign.job_id, campaign.experiments, status)
    return report, {arm.name: arm for arm in report.arms}


def test_all_figures_of_a_finished_campaign(full):
    report, arms = arms_of(full, "SUCCEEDED")
    assert [arm.name for arm in report.arms] == ["privileged_state", "blind", "projection-96", "projection-192"]
    assert not report.missing
    assert (report.data.episodes, report.data.frames, report.data.reference) == (100, 20010, "datasets/transfer_cube")
    assert report.data.digest == "3f" * 32
    assert report.encoder.is_standin
    arm = arms["projection-192"]
    assert (arm.success.successes, arm.success.episodes) == (sum(arm.outcomes.values()), 20)
    assert arm.training["steps"] == 2000
    assert len(arm.loss) == 40
    assert [step for step, *_ in arm.validation] == [500, 1000, 1500, 2000]
    assert {strip.kind for strip in arm.filmstrips} == {"success", "failure"}
    assert arm.mean_stage == pytest.approx(2 + 2 * arm.success.rate)
    assert (arm.reached(2), arm.reached(3)) == (1.0, arm.success.rate)
    assert [pair.first for pair in report.candidate_pairs] == ["projection-192"]
    assert {(pair.first, pair.second) for pair in report.reference_pairs} == {
        (candidate, reference)
        for candidate in ("projection-96", "projection-192")
        for reference in ("privileged_state", "blind")
    }


def test_a_training_that_failed_is_named_with_its_class_and_keeps_its_curve(made):
    made.add("a", outcomes=[True, False])
    made.add("b", dies_in="train", error=NonFiniteError("The loss was not finite in 11 steps by step 700."))
    report, arms = arms_of(made, "FAILED")
    assert [arm.name for arm in report.missing] == ["b"]
    assert arms["b"].missing == "train failed (non-finite): The loss was not finite in 11 steps by step 700."
    assert arms["b"].loss[-1][0] == 700
    assert arms["b"].success is None
    assert arms["a"].success.successes == 1
    assert report.candidate_pairs == ()


def test_an_evaluation_that_failed_is_named(made):
    made.add("a", dies_in="evaluate", error=RenderError("No GL: install libegl1."))
    _, arms = arms_of(made)
    assert arms["a"].missing == "evaluate failed (no-gl): No GL: install libegl1."


def test_a_killed_step_is_told_from_a_failed_one(made):
    made.add("a", outcomes=[True])
    made.mark_running("a", "train")
    _, arms = arms_of(made)
    assert arms["a"].missing.startswith("train was killed on ")
    assert "still says running" in arms["a"].missing


def test_arms_that_never_started_say_which_step_stopped_them(unmade):
    unmade.shared_steps(fails="smoke", error=EncoderError("Encoder 'x' cannot be reached."))
    unmade.arms = []
    report = collect(
        unmade.store, unmade.job_id, [{"arm": "a", "overrides": []}, {"arm": "b", "overrides": []}], "FAILED"
    )
    assert [arm.missing for arm in report.arms] == [
        "train never started because smoke failed (encoder): Encoder 'x' cannot be reached."
    ] * 2
    assert [step.status for step in report.steps] == ["succeeded", "failed", "absent"]


def test_a_campaign_of_which_nothing_ran_is_still_a_report(unmade):
    report = collect(unmade.store, unmade.job_id, [{"arm": "a", "overrides": []}], "CANCELED")
    assert report.arms[0].missing == "train never started because the campaign ended as CANCELED"
    assert report.wall_seconds is None
    assert report.encoder.is_standin is None


def test_an_evaluation_without_a_result_is_named(made):
    made.add("a", outcomes=[True])
    (made.store.folder(f"rollouts/{1:032x}") / "RESULT.json").unlink()
    _, arms = arms_of(made)
    assert arms["a"].missing == "evaluate ended without a result"


@pytest.mark.parametrize("content", ["", "{", "{\n", "[]\n", '{"seed": 1}\n'])
@pytest.mark.parametrize("file", ["RESULT.json", "episodes.jsonl"])
def test_damaged_results_cost_one_arm_and_not_the_report(made, file, content):
    made.add("a", outcomes=[True, False])
    made.add("b", outcomes=[True, True])
    (made.store.folder(f"rollouts/{1:032x}") / file).write_text(content)
    _, arms = arms_of(made)
    assert "rollouts cannot be read" in arms["a"].missing
    assert arms["a"].success is None
    assert arms["b"].success.successes == 2


def test_a_damaged_curve_costs_the_curve_and_not_the_result(made):
    made.add("a", outcomes=[True, False])
    (made.store.folder(f"trainings/{1:032x}") / "metrics.jsonl").write_text("{\n")
    _, arms = arms_of(made)
    assert arms["a"].success.successes == 1
    assert arms["a"].loss == ()
    assert "cannot be read" in arms["a"].notes[0]


def test_a_damaged_record_costs_one_arm(made):
    made.add("a", outcomes=[True])
    made.add("b", outcomes=[True])
    made.corrupt(f"campaigns/{made.job_id}/a", "train.json")
    _, arms = arms_of(made)
    assert arms["a"].missing.startswith("train failed (store-damaged): ")
    assert not arms["b"].missing


def test_a_name_that_is_no_folder_is_named_too(made):
    report = collect(made.store, made.job_id, [{"arm": "../up", "overrides": []}], "")
    assert "Store key" in report.arms[0].missing


def test_what_a_cached_step_did_not_record_is_known_from_a_training(unmade):
    unmade.add("a", outcomes=[True])
    report, _ = arms_of(unmade)
    assert report.data.digest == "3f" * 32
    assert report.encoder.is_standin
    assert {step.status for step in report.steps} == {"absent"}


def test_unknown_outcomes_are_in_no_rate_and_no_pair(made):
    made.add("a", outcomes=[True, None, True, False])
    made.add("b", outcomes=[True, True, None, False])
    report, arms = arms_of(made)
    assert (arms["a"].success.successes, arms["a"].success.episodes, arms["a"].unknown) == (2, 3, 1)
    (pair,) = report.candidate_pairs
    assert pair.shared == 2


@pytest.mark.parametrize(
    ("name", "overrides", "role"),
    [
        ("privileged_state", (), CONTROL),
        ("blind", (), BLIND),
        ("mine", ("head=small", "backbone=privileged_state"), CONTROL),
        ("blind", ("backbone=siglip2_diffusion",), CANDIDATE),
        ("projection-96", ("backbone.per_view_output_dim=96",), CANDIDATE),
    ],
)
def test_roles_follow_the_backbone(name, overrides, role):
    assert role_of(name, overrides) == role


def test_steps_that_ran_different_code_are_seen(full):
    key = f"campaigns/{full.job_id}/blind/evaluate.json"
    full.store.write_json(key, {**full.store.read_json(key), "git_revision": "f" * 40})
    report, _ = arms_of(full)
    assert "f" * 40 in report.revisions


def test_gpu_time_is_that_of_every_step_that_had_a_gpu_shards_included(made, monkeypatch):
    made.add("a", outcomes=[True])
    assert arms_of(made)[0].gpu_seconds is None
    monkeypatch.setenv("ROBOIMI_GPUS", "2")
    for step, arm, seconds in (("encode-1-of-2", "campaign", 10.0), ("train", "a", 5.0), ("evaluate-2-of-2", "a", 1.5)):
        made.step(step, arm, seconds=seconds)
        record = made.store.read_json(f"campaigns/{made.job_id}/{arm}/{step}.json")
        made.store.write_json(f"campaigns/{made.job_id}/{arm}/{step}.json", record | {"gpu_seconds": 2 * seconds})
        assert record["gpus"] == 2
    report, _ = arms_of(made)
    assert report.gpu_seconds == 33.0
    assert summary_metrics(report)["gpu_seconds"] == 33.0


def test_a_shard_that_failed_says_why_its_stage_never_ended(made):
    made.add("a", dies_in="evaluate")
    folder = f"campaigns/{made.job_id}/a"
    record = made.store.read_json(f"{folder}/evaluate.json")
    (made.store.folder(folder) / "evaluate.json").unlink()
    made.store.write_json(f"{folder}/evaluate-1-of-2.json", {**record, "status": "succeeded"})
    made.store.write_json(f"{folder}/evaluate-2-of-2.json", {**record, "reason": "No GL in this pod."})
    _, arms = arms_of(made, "FAILED")
    assert arms["a"].missing == "evaluate failed (non-finite): No GL in this pod."


def test_a_stage_takes_as_long_as_its_longest_shard_and_the_step_after_it(made):
    made.add("a", outcomes=[True])
    for number, seconds in ((1, 20.0), (2, 30.0)):
        made.step(f"encode-{number}-of-2", seconds=seconds)
    made.step("encode", seconds=2.0, recognised=True)
    report, _ = arms_of(made)
    (encode,) = [step for step in report.steps if step.name == "encode"]
    assert (encode.seconds, encode.recognised) == (32.0, False)


@pytest.mark.parametrize(("status", "kept"), [("SUCCEEDED", "SUCCEEDED"), ("RUNNING", ""), ("", "")])
def test_a_state_that_is_not_final_is_not_said(made, status, kept):
    made.add("a", outcomes=[True])
    assert arms_of(made, status)[0].status == kept
