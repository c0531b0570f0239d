"""Protects the contract of the compiled campaign: what a cluster runs, in which order, with what, on which nodes."""

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.arms import Arm
from pipelines.compile import compile_campaign
from pipelines.placement import SITE_SETTINGS
from pipelines.profiles import GPU_STEPS, STEPS, load_profile

JOB_ID = "{{$.pipeline_job_uuid}}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline's specification and its Kubernetes part."""
    path = compile_campaign(load_profile("cluster"), tmp_path_factory.mktemp("ir") / "campaign.yaml")
    pipeline, platform = yaml.safe_load_all(path.read_text())
    return pipeline, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = compile_campaign(load_profile("local"), tmp_path_factory.mktemp("ir") / "campaign.yaml")
    return yaml.safe_load(path.read_text())


def name_of(step: str) -> str:
    return step.replace("_", "-")


def all_tasks(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every task of every DAG, by name."""
    dags = [pipeline["root"]["dag"]] + [c["dag"] for c in pipeline["components"].values() if "dag" in c]
    return {name: task for dag in dags for name, task in dag["tasks"].items()}


def container(pipeline: dict[str, Any], step: str) -> dict[str, Any]:
    return pipeline["deploymentSpec"]["executors"][f"exec-{name_of(step)}"]["container"]


def dag(pipeline: dict[str, Any], prefix: str, holding: str = "") -> dict[str, Any]:
    """The tasks of the one DAG whose component is called so, and that holds the task `holding`."""
    found = [c["dag"]["tasks"] for name, c in pipeline["components"].items() if name.startswith(f"comp-{prefix}")]
    (tasks,) = [tasks for tasks in found if not holding or holding in tasks]
    return tasks


def loop(tasks: dict[str, Any], over: str) -> tuple[str, dict[str, Any]]:
    """Name and task of the one loop among `tasks` over a parameter."""
    (found,) = [
        (name, task)
        for name, task in tasks.items()
        if task.get("parameterIterator", {}).get("items", {}).get("inputParameter") == f"pipelinechannel--{over}"
    ]
    return found


def test_the_exit_task_waits_for_everything_and_runs_whatever_happened(cluster):
    tasks = cluster[0]["root"]["dag"]["tasks"]
    assert set(tasks) == {"exit-handler-1", "compare-experiments"}
    compare = tasks["compare-experiments"]
    assert compare["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert compare["inputs"]["parameters"]["status"] == {"taskFinalStatus": {"producerTask": "exit-handler-1"}}
    assert compare["inputs"]["parameters"]["experiments"] == {"componentInputParameter": "experiments"}


def test_the_stages_inside_the_exit_handler(cluster, local):
    shared = {"validate-dataset", "smoke-test-encoder", "encode-features"}
    on_cluster, here = dag(cluster[0], "exit-handler"), dag(local, "exit-handler")
    loops = {name for name in on_cluster if name.startswith("for-loop")}
    assert set(on_cluster) == shared | {"preflight-gpu"} | loops
    assert len(loops) == 2
    assert {name for name in here if not name.startswith("for-loop")} == shared
    assert set(here["encode-features"]["dependentTasks"]) == {"validate-dataset", "smoke-test-encoder"}
    assert loop(on_cluster, "experiments")[1]["iteratorPolicy"]["parallelismLimit"] == 2
    assert loop(here, "experiments")[1]["iteratorPolicy"]["parallelismLimit"] == 2


def test_no_gpu_is_spent_on_images_before_data_encoder_and_node_are_found_good(cluster):
    tasks = dag(cluster[0], "exit-handler")
    name, shards = loop(tasks, "encode_shards")
    assert set(shards["dependentTasks"]) == {"validate-dataset", "smoke-test-encoder", "preflight-gpu"}
    assert "iteratorPolicy" not in shards  # all at once
    assert name in tasks["encode-features"]["dependentTasks"]
    assert set(dag(cluster[0], "for-loop", "encode-shard")) == {"encode-shard"}


def test_every_loop_runs_over_a_parameter_and_never_over_a_static_list(cluster, local):
    for pipeline in (cluster[0], local):
        iterators = [task["parameterIterator"] for task in all_tasks(pipeline).values() if "parameterIterator" in task]
        assert iterators
        assert all(set(iterator["items"]) == {"inputParameter"} for iterator in iterators)


def test_an_arm_is_trained_and_then_evaluated(cluster, local):
    tasks = dag(cluster[0], "for-loop", "train-policy")
    name, shards = loop(tasks, "eval_shards")
    assert set(tasks) == {"train-policy", "evaluate-policy", name}
    assert shards["dependentTasks"] == ["train-policy"]
    assert set(tasks["evaluate-policy"]["dependentTasks"]) == {"train-policy", name}
    assert set(dag(cluster[0], "for-loop", "evaluate-shard")) == {"evaluate-shard"}
    assert set(dag(local, "for-loop", "train-policy")) == {"train-policy", "evaluate-policy"}
    train, evaluate = tasks["train-policy"]["inputs"], tasks["evaluate-policy"]["inputs"]
    assert evaluate["artifacts"]["policy"]["taskOutputArtifact"] == {
        "outputArtifactKey": "policy",
        "producerTask": "train-policy",
    }
    assert evaluate["parameters"]["shards"] == {"componentInputParameter": "pipelinechannel--eval_shards"}
    assert set(train["artifacts"]) == {"dataset", "features"}
    expression = "parseJson(string_value)"
    assert train["parameters"]["arm"]["parameterExpressionSelector"] == f'{expression}["arm"]'
    assert train["parameters"]["overrides"]["parameterExpressionSelector"] == f'{expression}["overrides"]'
    assert evaluate["parameters"]["arm"]["parameterExpressionSelector"] == f'{expression}["arm"]'


def test_a_crashed_training_is_started_again_in_its_pod_and_not_on_one_machine(cluster, local):
    for pipeline, restarts in ((cluster[0], 5.0), (local, 0.0)):
        value = dag(pipeline, "for-loop", "train-policy")["train-policy"]["inputs"]["parameters"]["restarts"]
        assert value == {"runtimeValue": {"constant": restarts}}


def test_shards_are_what_the_profile_says(cluster, tmp_path):
    parameters = cluster[0]["root"]["inputDefinitions"]["parameters"]
    assert parameters["encode_shards"]["defaultValue"] == ["1/4", "2/4", "3/4", "4/4"]
    assert parameters["eval_shards"]["defaultValue"] == ["1/4", "2/4", "3/4", "4/4"]
    profile = load_profile("cluster")
    one = replace(profile, cluster=replace(profile.cluster, encode_shards=1, eval_shards=1))
    pipeline = next(yaml.safe_load_all(compile_campaign(one, tmp_path / "c.yaml").read_text()))
    assert not {"encode-shard", "evaluate-shard"} & set(all_tasks(pipeline))


def test_the_default_experiments_hold_both_projections_and_only_arm_and_overrides(cluster):
    default = cluster[0]["root"]["inputDefinitions"]["parameters"]["experiments"]["defaultValue"]
    assert {item["arm"]: item["overrides"] for item in default} == {
        f"projection-{width}.seed-{seed}": [f"backbone.per_view_output_dim={width}", f"train.seed={seed}"]
        for width in (96, 192)
        for seed in (0, 1, 2)
    }
    # KFP makes floats of numbers inside dicts; `name` and `type` would be attributes of the loop's item.
    assert all(set(item) == {"arm", "overrides"} for item in default)
    assert all(isinstance(value, str) for item in default for value in [item["arm"], *item["overrides"]])


def test_the_local_campaign_has_the_reference_arms_first(local):
    default = local["root"]["inputDefinitions"]["parameters"]["experiments"]["defaultValue"]
    assert [item["arm"] for item in default] == ["privileged_state", "blind", "projection-96", "projection-192"]


def test_the_parameters_of_the_campaign(cluster):
    parameters = cluster[0]["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == {
        "dataset",
        "dataset_digest",
        "store",
        "encoder",
        "experiments",
        "train_overrides",
        "eval_episodes",
        "eval_seed",
        "code_revision",
        "encode_shards",
        "eval_shards",
        "require_gpu",
    }
    assert {name for name, value in parameters.items() if not value.get("isOptional")} == {"dataset", "dataset_digest"}


def test_the_job_id_is_always_a_whole_value(cluster, local):
    for pipeline in (cluster[0], local):
        found = []
        for task in all_tasks(pipeline).values():
            for value in task.get("inputs", {}).get("parameters", {}).values():
                text = str(value.get("runtimeValue", {}).get("constant", ""))
                if "pipeline_job" in text:
                    found.append(text)
        assert set(found) == {JOB_ID}


def test_every_step_knows_its_run(cluster):
    pipeline, platform = cluster
    tasks = all_tasks(pipeline)
    for step in STEPS:
        job = tasks[name_of(step)]["inputs"]["parameters"]["job_id"]["runtimeValue"]["constant"]
        variables = {item["name"]: item["fieldPath"] for item in platform[f"exec-{name_of(step)}"]["fieldPathAsEnv"]}
        assert variables["KFP_RUN_ID"] == "metadata.labels['pipeline/runid']"
        cached = tasks[name_of(step)]["cachingOptions"].get("enableCache", False)
        # The run id among its inputs would give a cached step another cache key at every run.
        assert job == ("" if cached else JOB_ID)


def test_what_comes_before_the_arms_is_cached_and_only_on_the_cluster(cluster, local):
    def cached(pipeline: dict[str, Any]) -> set[str]:
        tasks = all_tasks(pipeline).items()
        return {name for name, task in tasks if task.get("cachingOptions", {}).get("enableCache")}

    gates = {"validate-dataset", "smoke-test-encoder"}
    assert cached(cluster[0]) == gates | {"encode-shard", "encode-features"}
    assert cached(local) == set()


@pytest.mark.parametrize("step", STEPS)
def test_gpu_steps_and_only_they_ask_for_an_accelerator(cluster, step):
    pipeline, platform = cluster
    resources, pod = container(pipeline, step)["resources"], platform[f"exec-{name_of(step)}"]
    if step not in GPU_STEPS:
        assert "accelerator" not in resources
        assert "tolerations" not in pod
        assert "emptyDirMounts" not in pod
        return
    assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert resources["accelerator"]["resourceCount"] == "1"
    assert {"name": "ROBOIMI_GPUS", "value": "1"} in container(pipeline, step)["env"]
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["emptyDirMounts"] == [
        {"medium": "Memory", "mountPath": "/dev/shm", "sizeLimit": "8Gi", "volumeName": "shm"}
    ]


@pytest.mark.parametrize("step", STEPS)
def test_every_step_states_its_resources_its_image_and_its_secrets(cluster, step):
    pipeline, platform = cluster
    spec, pod = container(pipeline, step), platform[f"exec-{name_of(step)}"]
    resources = spec["resources"]
    limits = ("resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit")
    assert tuple(resources[name] for name in limits) == load_profile("cluster").cluster.resources[step]
    image = "cpu" if step in {"validate_dataset", "compare_experiments"} else "gpu"
    assert spec["image"] == f"roboimi-{image}:0.1.0"
    assert "pip install" not in " ".join(spec["command"])
    assert {"name": "ROBOIMI_IMAGE", "value": spec["image"]} in spec["env"]
    assert {"name": "OMP_NUM_THREADS", "value": str(int(resources["resourceCpuLimit"]))} in spec["env"]
    secrets = {secret["secretName"]: secret.get("optional", False) for secret in pod["secretAsEnv"]}
    # Optional where a step can do without: a site without SwanLab or without the hub has no such secret.
    wanted = {"roboimi-store": False}
    wanted |= {"roboimi-swanlab": True} if step == "train_policy" else {}
    wanted |= {} if step in {"validate_dataset", "compare_experiments"} else {"roboimi-hub": True}
    assert secrets == wanted


@pytest.mark.parametrize("step", STEPS)
def test_every_pod_can_be_told_from_others_and_runs_as_nobody(cluster, step):
    pod = cluster[1][f"exec-{name_of(step)}"]
    assert pod["podMetadata"]["labels"] == {
        "app.kubernetes.io/part-of": "roboimi-campaign",
        "app.kubernetes.io/component": name_of(step),
    }
    assert pod["securityContext"] == {"runAsUser": "1000", "runAsGroup": "0", "runAsNonRoot": True}
    (settings,) = pod["configMapAsEnv"]
    assert (settings["configMapName"], settings["optional"]) == ("roboimi-defaults", True)
    assert {item["configMapKey"]: item["envVar"] for item in settings["keyToEnv"]} == SITE_SETTINGS
    assert "configMapAsVolume" not in pod


def test_no_cached_step_receives_the_code_revision(cluster):
    for name, task in all_tasks(cluster[0]).items():
        if "code_revision" in task.get("inputs", {}).get("parameters", {}):
            assert name == "preflight-gpu"
            assert not task["cachingOptions"].get("enableCache", False)


def test_a_site_can_name_a_queue_and_certificates(tmp_path):
    profile = load_profile("cluster")
    site = replace(profile, cluster=replace(profile.cluster, queue="robots", ca_config_map="store-ca"))
    text = compile_campaign(site, tmp_path / "c.yaml").read_text()
    pipeline, platform = yaml.safe_load_all(text)
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for step in STEPS:
        pod = pods[f"exec-{name_of(step)}"]
        queue = pod["podMetadata"]["labels"].get("kueue.x-k8s.io/queue-name")
        assert queue == ("robots" if step in GPU_STEPS else None)
        (volume,) = pod["configMapAsVolume"]
        assert (volume["configMapName"], volume["mountPath"]) == ("store-ca", "/etc/roboimi/ca")
        environment = {item["name"]: item["value"] for item in container(pipeline, step)["env"]}
        assert environment["AWS_CA_BUNDLE"] == "/etc/roboimi/ca/ca.crt"


def test_finished_runs_are_cleared_away(tmp_path):
    path = compile_campaign(load_profile("cluster"), tmp_path / "campaign.yaml")
    _, platform = yaml.safe_load_all(path.read_text())
    assert platform["platforms"]["kubernetes"]["pipelineConfig"] == {"resourceTtlOnCompletion": 1209600}


def test_every_step_but_the_exit_task_is_retried_for_longer_than_an_hour(cluster):
    tasks = all_tasks(cluster[0])
    for step in STEPS:
        policy = tasks[name_of(step)].get("retryPolicy")
        if step == "compare_experiments":
            assert policy is None
        else:
            assert policy["maxRetryCount"] == 3
            assert policy["backoffMaxDuration"] == "604800s"


def test_images_can_be_pinned_by_digest(tmp_path):
    profile = load_profile("cluster").with_images("cpu@sha256:1", None)
    pipeline = next(yaml.safe_load_all(compile_campaign(profile, tmp_path / "c.yaml").read_text()))
    assert container(pipeline, "validate_dataset")["image"] == "cpu@sha256:1"
    assert container(pipeline, "train_policy")["image"] == "roboimi-gpu:0.1.0"


def test_the_local_pipeline_has_no_kubernetes_part(local, tmp_path):
    path = compile_campaign(load_profile("local"), tmp_path / "campaign.yaml")
    assert len(list(yaml.safe_load_all(path.read_text()))) == 1


def test_arms_side_by_side_on_one_machine_share_its_cores(cluster, local):
    threads = str(max(1, len(os.sched_getaffinity(0)) // load_profile("local").parallelism))
    for step in ("train_policy", "evaluate_policy"):
        environment = {item["name"]: item["value"] for item in container(local, step)["env"]}
        assert environment == {"OMP_NUM_THREADS": threads, "LP_NUM_THREADS": threads}
    assert "env" not in container(local, "encode_features")


def test_a_campaign_of_other_arms(tmp_path):
    path = compile_campaign(load_profile("cluster"), tmp_path / "c.yaml", [Arm("wide", ("head=base",))])
    default = next(yaml.safe_load_all(path.read_text()))["root"]["inputDefinitions"]["parameters"]["experiments"]
    assert default["defaultValue"] == [{"arm": "wide", "overrides": ["head=base"]}]


def test_the_compiled_text_is_ascii_and_small(tmp_path):
    # Databases behind KFP may keep utf8 of three bytes, and a workflow above 1.5 MiB cannot be retried.
    text = compile_campaign(load_profile("cluster"), tmp_path / "campaign.yaml").read_bytes()
    text.decode("ascii")
    assert len(text) < 100_000


def test_compiling_in_another_process_gives_the_same_bytes(tmp_path, run_pipelines):
    there, here = tmp_path / "there.yaml", tmp_path / "here.yaml"
    assert run_pipelines("compile", "--profile", "cluster", "-o", str(there)).returncode == 0
    assert compile_campaign(load_profile("cluster"), here).read_bytes() == there.read_bytes()


def test_the_comment_whose_order_differs_from_run_to_run_is_left_out(tmp_path):
    lines = compile_campaign(load_profile("cluster"), tmp_path / "campaign.yaml").read_text().splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert comments == ["# roboimi campaign, profile cluster: python -m pipelines compile"]


def test_nothing_is_left_beside_the_compiled_file(tmp_path: Path):
    compile_campaign(load_profile("local"), tmp_path / "deep" / "campaign.yaml")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["campaign.yaml"]


def test_profiles_are_not_changed_by_compiling(tmp_path):
    profile = load_profile("cluster")
    before = copy.deepcopy(profile)
    compile_campaign(profile, tmp_path / "campaign.yaml")
    assert profile == before


def test_the_trial_is_the_same_pipeline_in_small(cluster, tmp_path):
    path = compile_campaign(load_profile("trial"), tmp_path / "trial.yaml")
    trial, platform = yaml.safe_load_all(path.read_text())
    assert {name: task.get("dependentTasks") for name, task in all_tasks(trial).items()} == {
        name: task.get("dependentTasks") for name, task in all_tasks(cluster[0]).items()
    }
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name, pod in pods.items():
        there = {key for key in pod if key != "activeDeadlineSeconds"}
        assert there == {key for key in cluster[1][name] if key != "activeDeadlineSeconds"}
        assert pod["secretAsEnv"] == cluster[1][name]["secretAsEnv"]
    defaults = trial["root"]["inputDefinitions"]["parameters"]
    assert defaults["require_gpu"]["defaultValue"] is False
    assert cluster[0]["root"]["inputDefinitions"]["parameters"]["require_gpu"]["defaultValue"] is True
