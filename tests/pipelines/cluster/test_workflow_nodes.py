"""Protects the way from a workflow's node to the step and arm that it is."""

import pytest

from pipelines.cluster.workflow_nodes import step_nodes
from pipelines.expected_steps import expected_steps, record_step
from pipelines.profiles import STEPS
from tests.pipelines.cluster.simulated_kubernetes import SimulatedKubernetes
from tests.pipelines.cluster.workflows import EXIT_HANDLER, NAME, PARAMETERS, Cluster, step_path


@pytest.fixture
def cluster():
    return Cluster(SimulatedKubernetes(), "run")


def found(cluster):
    return {(item.step, item.indices): item for item in step_nodes(list(cluster.nodes.values()))}


def test_each_arm_has_its_own_steps(cluster):
    for arm, phase in enumerate(("Succeeded", "Running")):
        cluster.step(step_path("train-policy", arm), phase)
        cluster.pod(step_path("train-policy", arm), phase)
        cluster.step(step_path("evaluate-shard", arm, 1), "Pending")
    nodes = found(cluster)
    assert nodes["train_policy", (0,)].phase == "Succeeded"
    assert nodes["train_policy", (1,)].phase == "Running"
    assert set(nodes) >= {("evaluate_shard", (0, 1)), ("evaluate_shard", (1, 1))}


def test_nodes_of_no_step_are_left_out(cluster):
    for name in (NAME, f"{NAME}.root", f"{NAME}.root-driver", EXIT_HANDLER, f"{EXIT_HANDLER}-driver"):
        cluster.node(name, "Running")
    cluster.node(f"{EXIT_HANDLER}.for-loop-2.iteration-driver", "Succeeded", "Pod")
    assert found(cluster) == {}


def test_the_last_attempt_counts(cluster):
    path = step_path("train-policy", 0)
    cluster.step(path, "Running")
    cluster.pod(path, "Failed", attempt=0, message="OOMKilled (exit code 137)")
    second = cluster.pod(path, "Running", attempt=1)
    node = found(cluster)["train_policy", (0,)]
    assert node.attempts[-1] == second["metadata"]["annotations"]["workflows.argoproj.io/node-id"]
    assert len(node.attempts) == 2


def test_defaults_that_retry_every_template_give_each_part_attempts(cluster):
    """As seen with `templateDefaults.retryStrategy` on Argo 3.6."""
    arm = f"{NAME}(0).root(0).exit-handler-1(0).for-loop-3(0).iteration-iterations(1:1)(0).iteration-item(0)"
    shard = f"{arm}.for-loop-4(0).iteration-iterations(0:0)(0).iteration-item(0).evaluate-shard"
    cluster.node(f"{arm}.train-policy", "Running", "Retry")
    cluster.node(f"{arm}.train-policy(0)", "Failed", message="OOMKilled (exit code 137)")
    cluster.node(f"{arm}.train-policy(0).executor", "Failed", "Retry", message="No more retries left")
    cluster.node(f"{arm}.train-policy(0).executor(0)", "Failed", "Pod", message="OOMKilled (exit code 137)")
    # This one failed too; the next is to come after a pause.
    cluster.node(f"{arm}.train-policy(1)", "Failed")
    cluster.node(f"{arm}.train-policy(1).executor", "Failed", "Retry")
    last = cluster.node(f"{arm}.train-policy(1).executor(0)", "Failed", "Pod")
    cluster.node(f"{shard}-driver", "Succeeded", "Retry")
    cluster.node(f"{shard}-driver(0)", "Succeeded", "Pod")
    cluster.node(shard, "Succeeded", "Retry")
    cluster.node(f"{shard}(0)", "Succeeded")
    cluster.node(f"{shard}(0).executor", "Skipped", "Skipped", message="when 'true != true' evaluated false")
    nodes = found(cluster)
    assert set(nodes) == {("train_policy", (1,)), ("evaluate_shard", (1, 0))}
    train = nodes["train_policy", (1,)]
    assert (train.phase, train.attempts[-1], len(train.attempts)) == ("Running", last["id"], 2)
    assert train.messages[0] == "OOMKilled (exit code 137)"
    assert nodes["evaluate_shard", (1, 0)].cached


def test_a_step_from_the_cache_ran_nothing(cluster):
    cluster.step(step_path("validate-dataset"), "Succeeded", cached=True)
    assert found(cluster)["validate_dataset", ()].cached


def test_a_driver_that_failed_ends_its_step(cluster):
    cluster.node(f"{step_path('smoke-test-encoder')}-driver", "Error", "Pod", message="no such image")
    node = found(cluster)["smoke_test_encoder", ()]
    assert node.phase == "Error"
    assert node.messages == ["no such image"]


def test_tasks_that_kfp_numbers_are_of_the_same_step(cluster):
    cluster.step(step_path("encode-features-2"), "Running")
    assert ("encode_features", ()) in found(cluster)


def test_the_exit_task_is_found_in_its_hook(cluster):
    cluster.node(f"{EXIT_HANDLER}.onExit.compare-experiments", "Succeeded")
    assert ("compare_experiments", ()) in found(cluster)


def test_every_expected_step_has_the_name_of_its_record():
    steps = expected_steps(PARAMETERS)
    assert [(step.arm, step.step) for step in steps][:6] == [
        ("campaign", "validate"),
        ("campaign", "smoke"),
        ("campaign", "preflight"),
        ("campaign", "encode-1-of-2"),
        ("campaign", "encode-2-of-2"),
        ("campaign", "encode"),
    ]
    wide = [(step.step, step.indices) for step in steps if step.arm == "wide"]
    assert wide == [
        ("train", (0,)),
        ("evaluate-1-of-2", (0, 0)),
        ("evaluate-2-of-2", (0, 1)),
        ("evaluate", (0,)),
    ]
    assert {step.task for step in steps} == set(STEPS)
    assert steps[-1].step == "compare"


def test_without_shards_there_is_one_step_of_each():
    steps = expected_steps(PARAMETERS | {"encode_shards": ["1/1"], "eval_shards": []})
    assert not [step for step in steps if step.task.endswith("_shard")]


def test_records_are_named_by_the_verb():
    assert record_step("smoke_test_encoder") == "smoke"
