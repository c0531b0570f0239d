"""What the pods of a campaign can reach, worked out from the policies as a network would: what they need alone."""

import pytest
from manifests.kustomize import build, kinds, one
from manifests.network import Pod, may_connect

from pipelines.placement import PART_OF

STEP = Pod("kubeflow", {**PART_OF, "app.kubernetes.io/component": "train-policy", "pipeline/runid": "r"})
DRIVER = Pod("kubeflow", {"pipeline/runid": "r"})
DNS = Pod("kube-system", {"k8s-app": "kube-dns"})
KFP = Pod("kubeflow", {"app": "ml-pipeline"})
METADATA = Pod("kubeflow", {"component": "metadata-grpc-server"})
SEAWEEDFS = Pod("kubeflow", {"app": "seaweedfs"})
KFP_MINIO = Pod("kubeflow", {"app": "minio"})
OWN_MINIO = Pod("kubeflow", {"app": "roboimi-minio"})
API_SERVER = "10.96.0.1"
PUBLIC = "18.154.227.90"

NEEDED = [
    (DNS, 53, "UDP"),
    (DNS, 53, "TCP"),
    (KFP, 8888, "TCP"),
    (KFP, 8887, "TCP"),
    (METADATA, 8080, "TCP"),
    (API_SERVER, 443, "TCP"),
    (API_SERVER, 6443, "TCP"),
]
FORBIDDEN = [
    ("169.254.169.254", 80, "TCP"),
    ("169.254.169.254", 443, "TCP"),
    ("169.254.170.2", 443, "TCP"),
    ("100.100.100.200", 443, "TCP"),
    (PUBLIC, 80, "TCP"),
    (PUBLIC, 22, "TCP"),
    (API_SERVER, 10250, "TCP"),
    (Pod("kubeflow", {"app": "mysql"}), 3306, "TCP"),
    (Pod("kubeflow", {"app": "mysql"}), 443, "TCP"),
    (Pod("kubeflow", dict(STEP.labels)), 29500, "TCP"),
    (Pod("default", {"app": "ml-pipeline"}), 8888, "TCP"),
    (Pod("default", {"k8s-app": "kube-dns"}), 53, "UDP"),
    (SEAWEEDFS, 8111, "TCP"),
    *((Pod("kubeflow", {"app": "somebody-else"}), port, "TCP") for port in (8887, 8888, 8080, 8333, 9000)),
]
STORES = {
    "base": [(SEAWEEDFS, 8333), (KFP_MINIO, 9000)],
    "overlays/strict": [(SEAWEEDFS, 8333), (KFP_MINIO, 9000)],
    "overlays/minio": [(OWN_MINIO, 9000)],
}


def reach(folder, source, target, port, protocol="TCP"):
    return may_connect(kinds(build(folder), "NetworkPolicy"), source, target, port, protocol)


@pytest.mark.parametrize("folder", sorted(STORES))
def test_a_step_reaches_what_it_needs(folder):
    assert [way for way in NEEDED if not reach(folder, STEP, *way)] == []


@pytest.mark.parametrize("folder", sorted(STORES))
def test_a_step_reaches_nothing_else(folder):
    """Among it the address where a cloud gives away the machine's credentials, on every port."""
    assert [way for way in FORBIDDEN if reach(folder, STEP, *way)] == []


@pytest.mark.parametrize("folder", sorted(STORES))
def test_a_step_reaches_the_object_store_of_its_overlay_and_no_other(folder):
    assert [way for way in STORES[folder] if not reach(folder, STEP, *way)] == []
    others = [pod for pod in (SEAWEEDFS, KFP_MINIO, OWN_MINIO) if pod not in [store for store, _ in STORES[folder]]]
    assert [pod for pod in others for port in (8333, 9000) if reach(folder, STEP, pod, port)] == []


def test_only_strict_has_no_way_out_of_the_cluster():
    assert reach("base", STEP, PUBLIC, 443)
    assert reach("overlays/minio", STEP, PUBLIC, 443)
    assert not reach("overlays/strict", STEP, PUBLIC, 443)
    settings = one(build("overlays/strict"), "ConfigMap", "roboimi-defaults")["data"]
    assert (settings["swanlab_mode"], settings["hub_offline"]) == ("disabled", "1")


@pytest.mark.parametrize("folder", sorted(STORES))
def test_no_pod_of_anybody_else_is_concerned(folder):
    for target, port, protocol in (*NEEDED, *FORBIDDEN):
        assert reach(folder, DRIVER, target, port, protocol)


@pytest.mark.parametrize("folder", sorted(STORES))
def test_nobody_opens_a_connection_to_a_step(folder):
    closed = one(build(folder), "NetworkPolicy", "roboimi-nothing")["spec"]
    assert closed["podSelector"] == {"matchLabels": PART_OF}
    assert set(closed["policyTypes"]) == {"Ingress", "Egress"}
    assert not any(policy["spec"].get("ingress") for policy in kinds(build("base"), "NetworkPolicy"))


def test_the_own_object_store_is_open_to_campaigns_and_its_setup_alone():
    spec = one(build("overlays/minio"), "NetworkPolicy", "roboimi-minio")["spec"]
    server = one(build("overlays/minio"), "StatefulSet", "roboimi-minio")["spec"]["template"]["metadata"]["labels"]
    setup = one(build("overlays/minio"), "Job", "roboimi-minio-setup")["spec"]["template"]["metadata"]["labels"]
    assert spec["podSelector"]["matchLabels"].items() <= server.items()
    (rule,) = spec["ingress"]
    allowed = [peer["podSelector"]["matchLabels"] for peer in rule["from"]]
    assert allowed == [PART_OF, {"app": "roboimi-minio-setup"}]
    assert allowed[1].items() <= setup.items()
    assert [port["port"] for port in rule["ports"]] == [9000]
