"""What overlays add: an object store reached by TLS, a queue that counts all a step asks for, Argo's defaults."""

import copy

import pytest
import yaml
from manifests.kustomize import MANIFESTS, build, kinds, kustomize, one

from components.images import CPU_IMAGE, GPU_IMAGE
from pipelines.compile import compile_campaign
from pipelines.profiles import load_profile

STOCK = {
    "artifactRepository": "archiveLogs: true\n",
    "workflowDefaults": "spec: {templateDefaults: {retryStrategy: {limit: '2', retryPolicy: OnError}}}\n",
}
"""The ConfigMap of a workflow controller as Kubeflow Pipelines ships it, in short."""


def test_campaigns_reach_the_own_object_store_by_tls():
    objects = build("overlays/minio")
    endpoint = one(objects, "ConfigMap", "roboimi-defaults")["data"]["endpoint"]
    service = one(objects, "Service", "roboimi-minio")
    assert endpoint == f"https://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    pod = one(objects, "StatefulSet", "roboimi-minio")["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    assert "--certs-dir" in server["command"]
    assert {server[probe]["httpGet"]["scheme"] for probe in ("readinessProbe", "livenessProbe")} == {"HTTPS"}
    assert ":latest" not in server["image"]


def test_the_setup_has_all_that_it_reads():
    objects = build("overlays/minio")
    pod = one(objects, "Job", "roboimi-minio-setup")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == CPU_IMAGE
    environment = {item["name"]: item for item in container["env"]}
    # Root's key alone: others would be tried first, and a trainer may not make users.
    assert not {"AWS_ACCESS_KEY_ID", "MINIO_ACCESS_KEY"} & set(environment)
    assert (
        environment["ROBOIMI_S3_ENDPOINT"]["value"] == one(objects, "ConfigMap", "roboimi-defaults")["data"]["endpoint"]
    )
    store = environment["TRAINER_ACCESS_KEY"]["valueFrom"]["secretKeyRef"]
    assert store == {"name": "roboimi-store", "key": "access_key"}
    policies = one(objects, "ConfigMap", "roboimi-store-policies")["data"]
    assert policies["trainer.json"] == (MANIFESTS / "policies/trainer.json").read_text()
    (volume,) = (item for item in pod["volumes"] if item["name"] == "policies")
    assert volume["configMap"]["name"] == "roboimi-store-policies"


def test_the_store_that_is_set_up_is_the_profiles():
    (container,) = one(build("overlays/minio"), "Job", "roboimi-minio-setup")["spec"]["template"]["spec"]["containers"]
    assert load_profile("cluster").defaults.store in container["command"]


def test_gpu_nodes_get_the_image_of_the_steps():
    pod = one(build("overlays/gpu"), "DaemonSet", "roboimi-gpu-image")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == GPU_IMAGE
    assert "nvidia.com/gpu" not in str(container["resources"])
    gpu = load_profile("cluster").cluster.gpu
    assert [{k: v for k, v in item.items() if v} for item in gpu.tolerations] == pod["tolerations"]


def test_the_queue_counts_all_that_a_step_requests(tmp_path):
    """Kueue never admits a pod that requests something its queue does not cover."""
    (queue,) = kinds(build("overlays/kueue"), "ClusterQueue")
    (group,) = queue["spec"]["resourceGroups"]
    cluster = load_profile("cluster").cluster
    path = compile_campaign(load_profile("cluster"), tmp_path / "campaign.yaml")
    pipeline, _ = yaml.safe_load_all(path.read_text())
    asked = set()
    for executor in pipeline["deploymentSpec"]["executors"].values():
        resources = executor["container"]["resources"]
        asked |= {"cpu"} if "resourceCpuRequest" in resources else set()
        asked |= {"memory"} if "resourceMemoryRequest" in resources else set()
        asked |= {resources["accelerator"]["resourceType"]} if "accelerator" in resources else set()
    assert asked == set(group["coveredResources"]) == {"cpu", "memory", cluster.gpu.resource}
    for flavor in group["flavors"]:
        assert [item["name"] for item in flavor["resources"]] == group["coveredResources"]


def test_the_parts_of_the_queue_belong_together():
    objects = build("overlays/kueue")
    (flavor,), (queue,), (local,) = (kinds(objects, kind) for kind in ("ResourceFlavor", "ClusterQueue", "LocalQueue"))
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    names = [item["name"] for item in queue["spec"]["resourceGroups"][0]["flavors"]]
    assert names == [flavor["metadata"]["name"]]
    selected = queue["spec"]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert selected == local["metadata"]["namespace"] == "kubeflow"
    assert {item["apiVersion"] for item in objects} == {"kueue.x-k8s.io/v1beta2"}


@pytest.fixture(scope="module")
def workflow_defaults(tmp_path_factory):
    """`workflowDefaults` of a controller whose ConfigMap took the overlay in."""
    site = tmp_path_factory.mktemp("site")
    overlay = site / "argo-retry"
    overlay.mkdir()
    for path in (MANIFESTS / "overlays/argo-retry").iterdir():
        (overlay / path.name).write_text(path.read_text())
    metadata = {"name": "workflow-controller-configmap", "namespace": "kubeflow"}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": copy.copy(STOCK)}
    (site / "argo.yaml").write_text(yaml.safe_dump(config))
    (site / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["argo.yaml"], "components": ["argo-retry"]}))
    done = kustomize(site)
    assert done.returncode == 0, done.stderr
    data = yaml.safe_load(done.stdout)["data"]
    assert data["artifactRepository"] == STOCK["artifactRepository"]
    return yaml.safe_load(data["workflowDefaults"])["spec"]


def test_argo_retries_failures_too_but_never_without_end(workflow_defaults):
    retry = workflow_defaults["templateDefaults"]["retryStrategy"]
    assert retry["retryPolicy"] == "Always"
    assert int(retry["limit"]) == 2
    # A DAG that failed has no message: without this, every loop around a failed arm would be done again.
    assert retry["expression"] == "lastRetry.message != ''"


def test_a_pod_gets_time_to_commit(workflow_defaults):
    from roboimi.vla.training.supervisor import SECONDS_TO_COMMIT

    pod = yaml.safe_load(workflow_defaults["podSpecPatch"])
    assert pod["terminationGracePeriodSeconds"] >= 2 * SECONDS_TO_COMMIT
    (container,) = pod["containers"]
    assert container["name"] == "main"
    assert set(container["lifecycle"]) == {"preStop"}
