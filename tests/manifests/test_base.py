"""What the base gives a campaign: exactly the rights it needs, the names that the pipeline asks for, and no way out."""

import pytest
from manifests.kustomize import BUILT, build, kinds, one

from pipelines.placement import SITE_SETTINGS
from pipelines.profiles import load_profile

PEOPLE_AND_PODS = {
    "roboimi-campaign": {
        ("argoproj.io", "workflowtaskresults", ""): {"create", "patch"},
        ("", "pods", ""): {"get"},
        ("", "configmaps", "kfp-launcher"): {"get"},
        ("", "secrets", "mlpipeline-minio-artifact"): {"get"},
    },
    "roboimi-watcher": {
        ("", "pods", ""): {"get", "list", "watch"},
        ("", "events", ""): {"get", "list", "watch"},
        ("", "pods/log", ""): {"get"},
        ("argoproj.io", "workflows", ""): {"get", "list", "watch"},
        ("", "configmaps", "roboimi-defaults"): {"get"},
        ("", "configmaps", "workflow-controller-configmap"): {"get"},
    },
}
"""Role -> (group, resource, name; "" is every name) -> verbs."""


def rights(role):
    """The rules of a Role, one entry for each thing that they name."""
    found = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for name in rule.get("resourceNames", [""]):
                    found.setdefault((group, resource, name), set()).update(rule["verbs"])
    return found


@pytest.mark.parametrize("role", sorted(PEOPLE_AND_PODS))
def test_a_role_has_the_rights_of_its_row_and_no_others(role):
    assert rights(one(build("base"), "Role", role)) == PEOPLE_AND_PODS[role]


@pytest.mark.parametrize("folder", BUILT)
def test_nothing_is_granted_by_a_wildcard_or_for_the_whole_cluster(folder):
    objects = build(folder)
    for role in kinds(objects, "Role"):
        assert "*" not in str(role["rules"])
        secrets = {name for (_, resource, name) in rights(role) if resource == "secrets"}
        assert "" not in secrets, f"{role['metadata']['name']} reads every secret of the namespace"
    assert not kinds(objects, "ClusterRole") + kinds(objects, "ClusterRoleBinding")


def test_the_account_of_the_pods_has_the_role_of_the_pods_alone():
    bindings = kinds(build("base"), "RoleBinding")
    account = {"kind": "ServiceAccount", "name": "roboimi-campaign", "namespace": "kubeflow"}
    bound = [binding["roleRef"]["name"] for binding in bindings if account in binding["subjects"]]
    assert bound == ["roboimi-campaign"]
    assert one(build("base"), "ServiceAccount", "roboimi-campaign")["metadata"]["namespace"] == "kubeflow"


def test_the_names_are_those_that_the_pipeline_asks_for():
    cluster = load_profile("cluster").cluster
    settings = one(build("base"), "ConfigMap", cluster.defaults_config_map)
    assert set(settings["data"]) == set(SITE_SETTINGS)
    assert all(isinstance(value, str) for value in settings["data"].values())


def test_limits_leave_the_pods_of_kubeflow_pipelines_alone():
    """A quota of cpu or memory refuses pods without requests and counts KFP's own; a maximum becomes every limit."""
    hard = one(build("base"), "ResourceQuota", "roboimi-campaign")["spec"]["hard"]
    assert "requests.nvidia.com/gpu" in hard
    assert all(name.startswith(("requests.nvidia.com/", "count/")) for name in hard)
    for limit in one(build("base"), "LimitRange", "roboimi-campaign")["spec"]["limits"]:
        assert set(limit) == {"type", "defaultRequest"}


@pytest.mark.parametrize("folder", BUILT)
def test_no_secret_is_in_the_manifests(folder):
    assert not kinds(build(folder), "Secret")
