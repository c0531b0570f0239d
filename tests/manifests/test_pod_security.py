"""Every pod of ours may run in a namespace that enforces the `restricted` level; what the check forbids, it finds."""

import copy

import pytest
import yaml
from manifests.kustomize import BUILT, build
from manifests.pod_security import violations

from pipelines.compile import compile_campaign
from pipelines.profiles import load_profile

HARDENED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""What Kubeflow Pipelines gives a step's container from 2.16 on, whatever the pipeline says; not `runAsNonRoot`."""


def templates(objects):
    """Name -> pod spec of what makes pods."""
    return {
        f"{item['kind']}/{item['metadata']['name']}": item["spec"]["template"]["spec"]
        for item in objects
        if "template" in item.get("spec", {})
    }


SHIPPED = {"overlays/minio": 2, "overlays/gpu": 1}
"""How many of them a folder has, so that none is missed."""

VOLUMES = {"emptyDirMounts": "emptyDir", "configMapAsVolume": "configMap", "secretAsVolume": "secret"}
"""What mounts a volume in the compiled settings of a step."""


@pytest.mark.parametrize("folder", BUILT)
def test_every_shipped_pod_is_restricted(folder):
    found = templates(build(folder))
    assert len(found) == SHIPPED.get(folder, 0)
    for name, spec in found.items():
        assert violations(spec) == [], name
        assert spec["automountServiceAccountToken"] is False, f"{name} has a token for the Kubernetes API"
        for container in spec["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name


def test_every_pod_of_the_compiled_pipeline_is_restricted(tmp_path):
    for name, settings in executors(tmp_path).items():
        assert violations(step_pod(settings)) == [], name


def test_a_step_without_its_security_context_would_not_be(tmp_path):
    for settings in executors(tmp_path).values():
        del settings["securityContext"]
        assert violations(step_pod(settings)) == ["main: runAsNonRoot is not true"]


def executors(tmp_path):
    """Each executor's Kubernetes settings in the compiled pipeline."""
    path = compile_campaign(load_profile("cluster"), tmp_path / "campaign.yaml")
    _, platforms = yaml.safe_load_all(path.read_text())
    return platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def step_pod(settings):
    """The part of a step's pod that the pipeline decides, as Kubeflow Pipelines makes it."""
    ours = settings.get("securityContext", {})
    # Numbers are strings in this message's JSON.
    ours = {name: value if name == "runAsNonRoot" else int(value) for name, value in ours.items()}
    volumes = [{"name": kind, VOLUMES[kind]: {}} for kind in settings if kind in VOLUMES]
    return {"volumes": volumes, "containers": [{"name": "main", "securityContext": {**HARDENED, **ours}}]}


SOUND = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "volumes": [{"name": "v", "emptyDir": {}}],
    "initContainers": [],
    "containers": [
        {"name": "c", "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}
    ],
}


def changed(path, value):
    """`SOUND` with another value at a path; None takes it out."""
    spec = copy.deepcopy(SOUND)
    *steps, last = path
    place = spec
    for step in steps:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return spec


CONTEXT = ("containers", 0, "securityContext")
BAD = [
    (("hostNetwork",), True),
    (("hostPID",), True),
    (("hostIPC",), True),
    (("volumes",), [{"name": "v", "hostPath": {"path": "/"}}]),
    (("volumes",), [{"name": "v", "nfs": {}}]),
    (("securityContext", "sysctls"), [{"name": "kernel.msgmax", "value": "1"}]),
    (("securityContext", "runAsNonRoot"), None),
    (("securityContext", "runAsNonRoot"), False),
    (("securityContext", "runAsUser"), 0),
    (("securityContext", "seccompProfile"), None),
    (("securityContext", "seccompProfile"), {"type": "Unconfined"}),
    (("securityContext", "appArmorProfile"), {"type": "Unconfined"}),
    (("securityContext", "seLinuxOptions"), {"type": "spc_t"}),
    (("securityContext", "windowsOptions"), {"hostProcess": True}),
    ((*CONTEXT, "allowPrivilegeEscalation"), None),
    ((*CONTEXT, "capabilities"), None),
    ((*CONTEXT, "capabilities"), {"drop": ["NET_RAW"]}),
    ((*CONTEXT, "capabilities"), {"drop": ["ALL"], "add": ["SYS_PTRACE"]}),
    ((*CONTEXT, "privileged"), True),
    ((*CONTEXT, "procMount"), "Unmasked"),
    ((*CONTEXT, "runAsUser"), 0),
    ((*CONTEXT, "runAsNonRoot"), False),
    ((*CONTEXT, "seccompProfile"), {"type": "Unconfined"}),
    (("containers", 0, "ports"), [{"containerPort": 80, "hostPort": 80}]),
    (("containers", 0, "livenessProbe"), {"httpGet": {"host": "10.0.0.1", "port": 80}}),
    (("containers", 0, "lifecycle"), {"preStop": {"tcpSocket": {"host": "10.0.0.1", "port": 80}}}),
    (("initContainers",), [{"name": "i"}]),
]


def test_the_check_knows_a_sound_pod():
    assert violations(SOUND) == []


@pytest.mark.parametrize(("path", "value"), BAD, ids=lambda item: str(item)[:60])
def test_the_check_finds_what_the_level_forbids(path, value):
    assert violations(changed(path, value))
