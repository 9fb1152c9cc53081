"""The command line of each server of a control plane, and the files they read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster import audit, kubeconfig
from tests.cluster.certificates import Authority, token_keys

SERVICE_NETWORK = "10.96.0.0/16"
HOSTS = ["127.0.0.1", "localhost", "10.96.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
MANAGER, SCHEDULER = "system:kube-controller-manager", "system:kube-scheduler"

Commands = dict[str, list[str]]


@dataclass(frozen=True)
class Options:
    """What a test may want otherwise than Kubernetes' defaults."""

    feature_gates: Mapping[str, bool] = field(default_factory=dict)  # of all servers but etcd
    runtime_config: Mapping[str, bool] = field(default_factory=dict)  # of the API server: {"api/all": True}
    arguments: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by server; after ours, so they win
    hosts: Sequence[str] = ()  # under which the API server answers besides


def commands(
    programs: Path, folder: Path, port: int, authority: Authority, audit_log: Path, options: Options
) -> Commands:
    """By name, the commands that serve a control plane on a port of 127.0.0.1; writes into folder what they read.

    etcd listens on sockets in the folder, so that no other user reaches it; the others serve nothing.
    """
    endpoint = kubeconfig.Endpoint(f"https://127.0.0.1:{port}", authority.certificate)
    for user in (MANAGER, SCHEDULER):
        kubeconfig.write(folder / f"{user.removeprefix('system:')}.kubeconfig", endpoint, authority.client(user))
    serving, tokens = authority.server([*HOSTS, *options.hosts]), token_keys()
    for name, content in {
        "ca.crt": authority.certificate,
        "server.crt": serving.certificate,
        "server.key": serving.key,
        "tokens.pub": tokens.certificate,
        "tokens.key": tokens.key,
        "audit-policy.yaml": json.dumps(audit.POLICY).encode(),
        "scheduler.yaml": json.dumps(_scheduler_configuration(folder)).encode(),
    }.items():
        (folder / name).write_bytes(content)
    made = {
        "etcd": _etcd(folder),
        "kube-apiserver": [*_api_server(folder, port, audit_log), *_runtime_config(options)],
        "kube-controller-manager": _controller_manager(folder),
        "kube-scheduler": [f"--config={folder}/scheduler.yaml", "--secure-port=0"],
    }
    unknown = set(options.arguments) - set(made)
    assert not unknown, f"there is no server {unknown}; there are {list(made)}"
    return {
        name: [
            str(programs / name),
            *arguments,
            *([] if name == "etcd" else _feature_gates(options)),
            *options.arguments.get(name, ()),
        ]
        for name, arguments in made.items()
    }


def _etcd(folder: Path) -> list[str]:
    client, peer = f"unix://{folder}/etcd.sock", f"unix://{folder}/etcd-peer.sock"
    return [
        f"--data-dir={folder}/etcd",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
    ]


def _api_server(folder: Path, port: int, audit_log: Path) -> list[str]:
    return [
        f"--etcd-servers=unix://{folder}/etcd.sock",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        "--permit-port-sharing",  # with the socket that reserves the port
        # No loopback address may be advertised, and on a machine without a network there is none besides.
        "--advertise-address=192.0.2.1",
        "--endpoint-reconciler-type=none",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        f"--cert-dir={folder}",
        f"--client-ca-file={folder}/ca.crt",
        f"--tls-cert-file={folder}/server.crt",
        f"--tls-private-key-file={folder}/server.key",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={folder}/tokens.pub",
        f"--service-account-signing-key-file={folder}/tokens.key",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
        # Pods leave a lost node after a second, not after 5 minutes.
        "--default-not-ready-toleration-seconds=1",
        "--default-unreachable-toleration-seconds=1",
        f"--audit-policy-file={folder}/audit-policy.yaml",
        f"--audit-log-path={audit_log}",
        "--audit-log-mode=blocking",  # a line is written before its request is answered
        "--audit-log-maxsize=100000",  # MB: never rotated
    ]


def _controller_manager(folder: Path) -> list[str]:
    return [
        f"--kubeconfig={folder}/kube-controller-manager.kubeconfig",
        "--secure-port=0",
        "--leader-elect=false",
        f"--root-ca-file={folder}/ca.crt",
        f"--service-account-private-key-file={folder}/tokens.key",
        "--use-service-account-credentials",  # so that the audit log tells controllers apart
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
        "--concurrent-job-syncs=50",
        # No kubelet renews a lease here: a node is what its status says, and a lost one is noticed at once.
        "--node-monitor-period=1s",
        "--node-monitor-grace-period=8760h",
        "--node-eviction-rate=100",
    ]


def _scheduler_configuration(folder: Path) -> dict[str, object]:
    connection = {"kubeconfig": f"{folder}/kube-scheduler.kubeconfig", "qps": 500, "burst": 1000}
    return {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": connection,
        "leaderElection": {"leaderElect": False},
    }


def _feature_gates(options: Options) -> list[str]:
    return _map("--feature-gates", options.feature_gates)


def _runtime_config(options: Options) -> list[str]:
    return _map("--runtime-config", options.runtime_config)


def _map(flag: str, values: Mapping[str, bool]) -> list[str]:
    return [f"{flag}=" + ",".join(f"{name}={str(value).lower()}" for name, value in values.items())] if values else []
