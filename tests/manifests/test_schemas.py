"""Every object is one that the API server knows, down to the last field; the check finds a misspelled one."""

import json
import subprocess

import pytest
import yaml
from manifests.kustomize import BUILT, MANIFESTS, build, built_text
from minio_server import CHECKOUT, find_tool

SCHEMAS = CHECKOUT / ".tools/kubernetes-schemas"
KUEUE = ("ResourceFlavor", "ClusterQueue", "LocalQueue")
"""Their schemas are not to be had from a package registry: `test_overlays.py` checks how they belong together."""


def conform(text):
    """What kubeconform finds in some YAML: its resources and their status."""
    if not (SCHEMAS / "VERSION").is_file():
        pytest.skip("the schemas of Kubernetes are not here: run scripts/tools.sh")
    location = f"{SCHEMAS}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    options = ["-strict", "-output", "json", "-verbose", "-skip", ",".join(KUEUE), "-schema-location", location]
    done = subprocess.run([find_tool("kubeconform"), *options], input=text, capture_output=True, text=True, check=False)
    return json.loads(done.stdout)["resources"]


@pytest.mark.parametrize("folder", BUILT)
def test_every_object_is_what_the_api_server_takes(folder):
    found = conform(built_text(folder))
    assert len(found) == len(build(folder))
    assert [item for item in found if item["status"] not in ("statusValid", "statusSkipped")] == []
    skipped = [item["kind"] for item in found if item["status"] == "statusSkipped"]
    assert set(skipped) == (set(KUEUE) if folder == "overlays/kueue" else set())


def test_argos_defaults_hold_a_pod_that_the_api_server_takes():
    config = yaml.safe_load((MANIFESTS / "overlays/argo-retry/workflow-defaults.yaml").read_text())
    defaults = yaml.safe_load(config["data"]["workflowDefaults"])["spec"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x"},
        "spec": yaml.safe_load(defaults["podSpecPatch"]),
    }
    (found,) = conform(yaml.safe_dump(pod))
    assert found["status"] == "statusValid", found["msg"]


MISTAKES = [
    ("base", "NetworkPolicy", ("spec", "egres"), []),
    ("base", "NetworkPolicy", ("spec", "policyTypes"), "Egress"),
    ("base", "Role", ("rules", 0), {"apiGroups": [""], "resource": ["pods"], "verbs": ["get"]}),
    ("base", "ResourceQuota", ("spec", "soft"), {}),
    ("base", "ConfigMap", ("data", "hub_offline"), 0),
    ("overlays/minio", "StatefulSet", ("spec", "template", "spec", "containers", 0, "securityContxt"), {}),
    ("overlays/minio", "Job", ("spec", "template", "spec", "restartPolicy"), 1),
]


@pytest.mark.parametrize(("folder", "kind", "path", "value"), MISTAKES, ids=[str(item[2]) for item in MISTAKES])
def test_a_mistake_is_found(folder, kind, path, value):
    item = next(item for item in build(folder) if item["kind"] == kind)
    *steps, last = path
    place = item
    for step in steps:
        place = place[step]
    place[last] = value
    (found,) = conform(yaml.safe_dump(item))
    assert found["status"] == "statusInvalid"
