"""What NetworkPolicies let a pod reach, by the rules of `networking.k8s.io/v1`: whatever any of them allows.

https://kubernetes.io/docs/concepts/services-networking/network-policies/
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pod:
    """One side of a connection that is a pod."""

    namespace: str
    labels: Mapping[str, str]


def may_connect(
    policies: Sequence[dict[str, Any]], source: Pod, target: "Pod | str", port: int, protocol: str = "TCP"
) -> bool:
    """Whether the egress rules let `source` open a connection.

    Args:
        policies: NetworkPolicy objects.
        source: a pod.
        target: a pod, or the IP address of something that is none.
        port: the target's own, not that of a Service before it.
        protocol: TCP or UDP.
    """
    mine = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == source.namespace
        and "Egress" in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], source.labels)
    ]
    if not mine:
        return True
    rules = [rule for spec in mine for rule in spec.get("egress", [])]
    return any(
        _has_port(rule, port, protocol) and any(_is_peer(peer, target, source.namespace) for peer in rule["to"])
        for rule in rules
    )


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector holds."""
    for expression in selector.get("matchExpressions", []):
        if expression["operator"] != "In":
            raise NotImplementedError(expression["operator"])
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def _has_port(rule: Mapping[str, Any], port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    if ports is None:
        return True
    return any((item.get("protocol", "TCP"), item.get("port", port)) == (protocol, port) for item in ports)


def _is_peer(peer: Mapping[str, Any], target: Pod | str, own_namespace: str) -> bool:
    if isinstance(target, str):
        address = ipaddress.ip_address(target)
        block = peer.get("ipBlock")
        return (
            block is not None
            and _within(address, block["cidr"])
            and not any(_within(address, inner) for inner in block.get("except", []))
        )
    if "ipBlock" in peer:
        return False
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": target.namespace}):
            return False
    elif target.namespace != own_namespace:
        return False
    return selects(peer.get("podSelector", {}), target.labels)


def _within(address: ipaddress.IPv4Address | ipaddress.IPv6Address, block: str) -> bool:
    return address in ipaddress.ip_network(block)
