"""The `restricted` level of Kubernetes' Pod Security Standards, and the `baseline` that it includes.

https://kubernetes.io/docs/concepts/security/pod-security-standards/ (the version for Kubernetes 1.34)
"""

from collections.abc import Iterator
from typing import Any

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}
SECCOMP = {"RuntimeDefault", "Localhost"}


def violations(spec: dict[str, Any]) -> list[str]:
    """What a pod's `spec` has that the `restricted` level forbids; empty where it may run.

    Linux pods alone: `os.name: windows` frees a pod from some of the rules.
    """
    pod = spec.get("securityContext") or {}
    found = [f"{name} is set" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        found += [f"volume {volume['name']} is a {kind}" for kind in sorted(kinds - VOLUMES)]
    found += [f"sysctl {item['name']}" for item in pod.get("sysctls", []) if item["name"] not in SYSCTLS]
    found += [f"the pod's {problem}" for problem in _shared(pod)]
    for container in _containers(spec):
        own = container.get("securityContext") or {}
        found += [f"{container['name']}: {problem}" for problem in (*_shared(own), *_own(own), *_either(own, pod))]
        found += [f"{container['name']}: host port" for port in container.get("ports", []) if port.get("hostPort")]
        found += [f"{container['name']}: {hook} to a host" for hook in _hooks_to_hosts(container)]
    return found


def _containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", []), *spec["containers"], *spec.get("ephemeralContainers", [])]


def _shared(context: dict[str, Any]) -> Iterator[str]:
    """Rules for the contexts of pods and containers alike."""
    if context.get("runAsNonRoot") is False:
        yield "runAsNonRoot is false"
    if context.get("runAsUser") == 0:
        yield "runAsUser is 0"
    if (context.get("seccompProfile") or {}).get("type", "RuntimeDefault") not in SECCOMP:
        yield "seccomp profile is not RuntimeDefault or Localhost"
    if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") not in SECCOMP:
        yield "AppArmor profile is not RuntimeDefault or Localhost"
    selinux = context.get("seLinuxOptions") or {}
    types = ("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
    if selinux.get("type", "") not in types or selinux.get("user") or selinux.get("role"):
        yield "SELinux options"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield "Windows host process"


def _own(context: dict[str, Any]) -> Iterator[str]:
    """Rules for the contexts of containers."""
    capabilities = context.get("capabilities") or {}
    if "ALL" not in capabilities.get("drop", []):
        yield "does not drop ALL capabilities"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "adds capabilities"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if context.get("privileged"):
        yield "is privileged"
    if context.get("procMount", "Default") != "Default":
        yield "procMount"


def _either(context: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    """Rules that the pod fulfils for a container that says nothing."""
    if not context.get("runAsNonRoot", pod.get("runAsNonRoot")):
        yield "runAsNonRoot is not true"
    if not (context.get("seccompProfile") or pod.get("seccompProfile")):
        yield "has no seccomp profile"


def _hooks_to_hosts(container: dict[str, Any]) -> Iterator[str]:
    hooks = {name: container.get(name) for name in ("livenessProbe", "readinessProbe", "startupProbe")}
    for name, hook in {**hooks, **(container.get("lifecycle") or {})}.items():
        if any((action or {}).get("host") for action in ((hook or {}).get(k) for k in ("httpGet", "tcpSocket"))):
            yield name
