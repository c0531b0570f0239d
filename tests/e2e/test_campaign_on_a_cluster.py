"""The campaign on a real Kubeflow Pipelines, as a user submits it, with everything killed once that can be killed.

`KFP_HOST=... make e2e` runs this; `site.py` says what it needs. The order matters: the last test looks at what a
campaign takes from the cache that the first one filled.
"""

import json
import subprocess
import sys
import time

import pytest
import yaml

from roboimi.vla.training.latest import LATEST
from roboimi.vla.training.lease import FILE as LEASE
from tests.e2e.site import ACTIVE, CHECKOUT, STOCK_RETRY, Site

pytestmark = pytest.mark.e2e

ARMS = ("projection-96", "projection-192")
STEPS_OF_TRIAL = {
    "validate-dataset": 1,
    "smoke-test-encoder": 1,
    "preflight-gpu": 1,
    "encode-shard": 2,
    "encode-features": 1,
    "train-policy": 2,
    "evaluate-shard": 4,
    "evaluate-policy": 2,
    "compare-experiments": 1,
}
"""How many pods each step of the trial has, with two arms and two shards."""

LONG = ("--only", "projection-96", "--steps", "2000", "--set", "train.checkpoint_interval_s=2", "--eval-episodes", "2")
"""One arm whose training lasts long enough to be killed in."""

ARGO_RETRY = CHECKOUT / "manifests/overlays/argo-retry/workflow-defaults.yaml"
OVERLAY = yaml.safe_load(yaml.safe_load(ARGO_RETRY.read_text())["data"]["workflowDefaults"])
"""What the overlay makes of the workflow controller's defaults."""


@pytest.fixture(scope="module")
def finished(site: Site, dataset: str) -> str:
    """The run id of a campaign that nobody disturbed."""
    run_id = site.submit(dataset)
    assert site.wait(run_id) == "SUCCEEDED"
    return run_id


def test_every_step_ran_once(site: Site, finished: str, tables: list[str]):
    tables.append(finished)
    pods = site.look(finished).values()
    assert {step: sum(pod.step == step for pod in pods) for step in STEPS_OF_TRIAL} == STEPS_OF_TRIAL
    assert {pod.phase for pod in pods} == {"Succeeded"}


def test_steps_got_what_the_profile_asks_for(site: Site, finished: str):
    (train, _) = site.pods(finished, "train-policy")
    spec = site.specification(train.name)
    (main,) = [container for container in spec.containers if container.name == "main"]
    assert main.resources.limits["nvidia.com/gpu"] == "1"
    assert any(volume.empty_dir and volume.empty_dir.medium == "Memory" for volume in spec.volumes)
    assert "/dev/shm" in {mount.mount_path for mount in main.volume_mounts}
    assert "nvidia.com/gpu" in {toleration.key for toleration in spec.tolerations}
    references = {item.name: item.value_from for item in main.env if item.value_from}
    assert references["AWS_SECRET_ACCESS_KEY"].secret_key_ref.name == "roboimi-store"
    (validate,) = site.pods(finished, "validate-dataset")
    (main,) = [c for c in site.specification(validate.name).containers if c.name == "main"]
    assert "nvidia.com/gpu" not in (main.resources.limits or {})


def test_the_report_and_the_records_are_in_the_store(site: Site, finished: str):
    folder = site.store.fetch(f"campaigns/{finished}")
    report = json.loads((folder / "report.json").read_text())
    assert (folder / "report.html").stat().st_size > 10_000
    assert {arm["arm"] for arm in report["arms"]} == set(ARMS)
    for arm in ARMS:
        train = site.record(finished, arm, "train")
        assert (train["status"], train["pod"], train["node"]) == ("succeeded", train["pod"], train["node"])
        assert train["pod"] in {pod.name for pod in site.pods(finished, "train-policy")}
        latest = site.store.read_json(f"{train['training']}/{LATEST}")
        assert latest["step"] == 200
        evaluate = site.record(finished, arm, "evaluate")
        result = site.store.committed(evaluate["rollouts"], "RESULT.json")
        assert (result["episodes"] + result["unknown"], len(result["seeds"])) == (4, 4)
        shards = [site.record(finished, arm, f"evaluate-{number}-of-2") for number in (1, 2)]
        assert [record["status"] for record in shards] == ["succeeded"] * 2
    command = [sys.executable, "-m", "roboimi.cli", "checkpoints", "verify", site.store.uri]
    verified = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_metrics_are_in_the_store_and_every_task_has_a_readable_name(site: Site, finished: str):
    for arm in ARMS:
        lines = metrics(site, site.record(finished, arm, "train")["training"])
        assert [line["step"] for line in lines if line["kind"] == "train"] == [50, 100, 150, 200]
    tasks = {task.display_name for task in site.client.get_run(finished).run_details.task_details}
    assert {"train-policy", "compare-experiments"} <= tasks


def test_status_tells_of_every_step(site: Site, finished: str):
    status = json.loads(site.pipelines("status", finished, "--store", site.store.uri, "--json").stdout)
    assert status["state"] == "SUCCEEDED"
    text = json.dumps(status)
    for arm in ARMS:
        assert arm in text


@pytest.mark.parametrize(
    ("seed", "defaults"),
    [(11, None), (12, STOCK_RETRY), (13, OVERLAY)],
    ids=["argo's own retries", "stock", "argo-retry overlay"],
)
def test_a_killed_training_and_a_deleted_pod_cost_one_interval(
    site: Site, dataset: str, tables: list[str], seed: int, defaults: dict
):
    with site.workflow_defaults(defaults):
        run_id = site.submit(dataset, *LONG, "--set", f"train.seed={seed}")
        tables.append(run_id)
        training = site.until(
            lambda: site.record(run_id, "projection-96", "train").get("training"), "the training's start", 900
        )
        kill_the_training(site, run_id, training)
        before = delete_its_pod(site, run_id, training)
        ended = site.wait(run_id)
        attempts = len(site.pods(run_id, "train-policy"))
        if defaults is OVERLAY:
            assert (ended, attempts) == ("SUCCEEDED", 2)
            assert interrupted(site, training)  # it was told beforehand, and committed
        if ended != "SUCCEEDED":  # this cluster retries no deleted pod: the user's own retry
            site.remark(run_id, f"the deleted pod was not retried by the cluster: {ended} after {attempts} pods")
            status = json.loads(site.pipelines("status", run_id, "--json").stdout)
            (train,) = [step for step in status["steps"] if step["step"] == "train"]
            site.remark(run_id, f"`status` said {train['failure_class']}: {train['reason']}")
            site.pipelines("retry", run_id)
            site.until(lambda: site.state(run_id) in ACTIVE, "the retry")
            assert site.wait(run_id) == "SUCCEEDED"
            site.remark(run_id, "`retry` went on from the last checkpoint and ended as SUCCEEDED")
        else:
            site.remark(run_id, f"the deleted pod was retried by the cluster: {attempts} pods of the step")
    record = site.store.read_json(f"{training}/TRAINING.json")
    site.remark(run_id, f"{len(record['attempts'])} attempts, no step of the curve twice")
    assert len(record["attempts"]) == 3  # the first, the one after the kill, the one after the deletion
    assert site.record(run_id, "projection-96", "train")["status"] == "succeeded"
    (arm,) = site.store.read_json(f"campaigns/{run_id}/report.json")["arms"]
    assert not arm["missing"]  # the report of the first attempt said that it had none
    steps = [line["step"] for line in metrics(site, training) if line["kind"] == "train"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 2000
    assert before > 0


def kill_the_training(site: Site, run_id: str, training: str) -> None:
    """SIGKILL to the process that trains; the supervisor beside it has to start another one, in the same pod."""
    latest = f"{training}/{LATEST}"
    site.until(lambda: site.store.read_json(latest), "a checkpoint")
    holder = site.store.read_json(f"{training}/{LEASE}")["holder"]
    pod = site.record(run_id, "projection-96", "train")["pod"]
    site.execute(pod, f"kill -9 {holder['pid']}")
    step = site.store.read_json(latest)["step"]
    site.until(lambda: site.store.read_json(latest)["step"] > step, "a checkpoint after the kill")
    reasons = site.record(run_id, "projection-96", "train")["restarts"]
    assert len(reasons) == 1
    assert "SIGKILL" in reasons[0]
    site.remark(run_id, f"SIGKILL to the training at step {step}: started again in the same pod")
    assert site.record(run_id, "projection-96", "train")["pod"] == pod


def delete_its_pod(site: Site, run_id: str, training: str) -> int:
    """Delete the pod; gives the step that was committed by then."""
    step = site.store.read_json(f"{training}/{LATEST}")["step"]
    site.delete(site.record(run_id, "projection-96", "train")["pod"])
    site.remark(run_id, f"pod deleted, step {step} committed")
    return step


def interrupted(site: Site, training: str) -> bool:
    """Whether an attempt ended by a signal that it had time to answer."""
    failure = site.store.read_json(f"{training}/FAILURE.json")
    return failure is not None and failure["failure_class"] == "interrupted"


def metrics(site: Site, training: str) -> list[dict]:
    lines = (site.store.fetch(training, ["metrics.jsonl"]) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_an_arm_that_fails_leaves_the_others_their_comparison(site: Site, dataset: str, tables: list[str], tmp_path):
    arms = tmp_path / "arms.yaml"
    arms.write_text(
        yaml.safe_dump(
            [
                {"arm": "sound", "overrides": ["backbone=blind", "train.seed=21"]},
                # Its first update makes weights whose loss is not finite.
                {"arm": "broken", "overrides": ["backbone=blind", "train.max_nonfinite=0", "train.learning_rate=1e30"]},
            ]
        )
    )
    run_id = site.submit(dataset, "--arms", str(arms))
    tables.append(run_id)
    assert site.wait(run_id) == "FAILED"
    assert site.record(run_id, "broken", "train")["status"] == "failed"
    assert site.record(run_id, "sound", "evaluate")["status"] == "succeeded"
    report = json.loads((site.store.fetch(f"campaigns/{run_id}") / "report.json").read_text())
    missing = {arm["arm"]: arm.get("missing") for arm in report["arms"]}
    assert "non-finite" in missing["broken"]
    assert not missing["sound"]
    assert len(site.pods(run_id, "compare-experiments")) == 1
    said = site.pipelines("status", run_id, "--store", site.store.uri, "--once", check=False).stdout
    assert "non-finite" in said


def test_a_new_campaign_goes_before_an_active_one(site: Site, dataset: str, tables: list[str]):
    older = site.submit(dataset, *LONG, "--set", "train.seed=31")
    tables.append(older)
    site.until(lambda: site.record(older, "projection-96", "train"), "the older run's training", 900)
    newer = site.submit(
        dataset, "--supersede", "--only", "projection-96", "--set", "train.seed=32", "--eval-episodes", "2"
    )
    tables.append(newer)
    assert site.state(older) not in ACTIVE
    assert site.client.get_run(older).storage_state == "ARCHIVED"
    assert not [pod for pod in site.pods(older, "train-policy") if pod.phase in {"Pending", "Running"}]
    assert site.wait(newer) == "SUCCEEDED"


def test_validation_and_encoding_come_from_the_cache(site: Site, dataset: str, finished: str, tables: list[str]):
    begin = time.monotonic()
    run_id = site.submit(dataset)
    tables.append(run_id)
    assert site.wait(run_id) == "SUCCEEDED"
    ran = {pod.step for pod in site.look(run_id).values()}
    assert not ran & {"validate-dataset", "smoke-test-encoder", "encode-shard", "encode-features"}
    assert {"preflight-gpu", "train-policy", "evaluate-policy", "compare-experiments"} <= ran
    for arm in ARMS:  # what Kubeflow does not cache is recognised by its key
        assert site.record(run_id, arm, "train")["recognised"] is True
        assert site.record(run_id, arm, "evaluate")["recognised"] is True
    site.remark(run_id, f"the whole campaign again: {time.monotonic() - begin:.0f} s")
