"""What a node's programs are told, as the files that they read."""

import json
import resource
from pathlib import Path
from typing import Any

from tests.cluster.real.images import PAUSE
from tests.cluster.real.network import GATEWAY, PODS

GRACE_SECONDS = 8  # without a sign of life until a node is called lost; Kubernetes' default is 50

# The kubelet sets these for the whole machine. A node sees files in their places, which hold what it wants.
SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}

# Root may not lower a process' OOM score everywhere, as in containers and on some virtual machines. AppArmor's
# profiles would be loaded into this machine and stay.
CONTAINERD = """
version = 4
imports = []
root = "{folder}/containerd"
temp = "{folder}/temporary"
oom_score = 0
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs"]
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{pause}"
[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{programs}"]
    conf_dir = "{folder}/cni"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    base_runtime_spec = "{spec}"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = "{runc}"
      SystemdCgroup = false
"""  # noqa: E501


def containerd(folder: Path, programs: Path, runc: Path, spec: Path) -> str:
    return CONTAINERD.format(folder=folder, programs=programs, runc=runc, spec=spec, pause=PAUSE)


def cni(folder: Path, subnet: str) -> str:
    """Pods hang on a bridge of their node; between nodes their addresses are routed as they are."""
    addresses = {
        "type": "host-local",
        "dataDir": f"{folder}/addresses",
        "ranges": [[{"subnet": subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "pods0", "isGateway": True, "hairpinMode": True, "ipam": addresses}
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]})


def kubelet(folder: Path, cgroup: str, authority: Path) -> str:
    """Only the API server may ask the kubelet for anything; a node that is lost is noticed soon."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    settings: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(authority)},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "podLogsDir": f"{folder}/pod-logs",
        "resolvConf": f"{folder}/resolv.conf",
        "clusterDNS": [GATEWAY],
        "clusterDomain": "cluster.local",
        "nodeStatusUpdateFrequency": "2s",  # also how long a sign of life may take on a busy machine
        "nodeLeaseDurationSeconds": GRACE_SECONDS,
        "maxOpenFiles": min(files, 1_000_000) if files != resource.RLIM_INFINITY else 1_000_000,
        "oomScoreAdj": 0,
        # The disk is this machine's: how full it is says nothing about a test.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi"},
    }
    return json.dumps(settings)


def kube_proxy(folder: Path, name: str) -> str:
    """Services have addresses in the node and its pods. All of this machine that it would set is left alone."""
    settings = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": f"{folder}/kube-proxy.kubeconfig"},
        "hostnameOverride": name,
        "clusterCIDR": PODS,
        # Else a pod answers another of its node past it, by way of their bridge, and under an address nobody asked.
        "nftables": {"masqueradeAll": True},
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "oomScoreAdj": 0,
    }
    return json.dumps(settings)
