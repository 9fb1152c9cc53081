"""A namespace on real nodes with a running operator, and a storage that the test controls."""

import hashlib
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from safetensors.numpy import load

from tailorpo_operator.api import naming
from tests.cluster.api import Kubectl
from tests.cluster.real.cluster import RealCluster
from tests.cluster.real.images import TRAINER
from tests.conftest import S3Server
from tests.faults import Fault, Proxy
from tests.operator.operating import Followed, OperatorProcess

ROOT = Path(__file__).parents[2]
NAMESPACE, BUCKET, SECRET = "research", "models", "s3-keys"
ITERATIONS = 12
TIMEOUT_SECONDS = 300.0  # seconds that a busy machine may need until a job trains, or is done
INTERVAL = 0.5  # seconds between polls: kubectl too takes processor time from the trainer

Fields = dict[str, Any]


class Gate:
    """On the way to the storage: of a held attempt it lets the first checkpoint through, and the others when opened.

    A trainer goes on until three are waiting. So it surely is at work when a test disturbs it, on any machine.
    """

    def __init__(self) -> None:
        self._held = dict[tuple[str, int], threading.Event]()
        self._first = dict[tuple[str, int], int]()

    def hold(self, job: str, attempt: int) -> None:
        self._held[job, attempt] = threading.Event()

    def open(self, job: str, attempt: int) -> None:
        self._held[job, attempt].set()

    def rule(self, method: str, path: str) -> Fault | None:
        """The proxy's answer to a request."""
        found = re.match(rf"/{BUCKET}/([^/]+)/attempt-(\d+)/step-(\d+)/", path)
        if found is None or method != "PUT":
            return None
        attempt, step = (found[1], int(found[2])), int(found[3])
        if (opened := self._held.get(attempt)) is None or self._first.setdefault(attempt, step) == step:
            return None
        return Fault(then=lambda: (opened.wait(), None)[1])


@dataclass(frozen=True)
class Environment:
    """A namespace for trainers, with a running operator and the keys of a bucket."""

    kubectl: Kubectl
    operator: OperatorProcess
    cluster: RealCluster
    server: S3Server
    gate: Gate
    endpoint: str

    def document(self, name: str, **template: Any) -> Fields:
        """The shipped example, with less to do, on two workers."""
        document: Fields = YAML(typ="safe").load(ROOT / "examples" / "demo.yaml")
        document["metadata"]["name"] = name
        labels = {"matchLabels": {naming.JOB: name}}
        apart = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        document["spec"] |= {
            "sampling": {"steps": 5, "trainedSteps": {"count": 2, "choose": "spread"}, "guidanceScale": 3.0},
            "training": {"iterations": ITERATIONS, "promptsPerIteration": 8},
            "checkpoint": {
                "storage": f"s3://{BUCKET}/{name}",
                "everyIterations": 1,
                "endpoint": self.endpoint,
                "secretName": SECRET,
            },
            "workers": 2,
            "template": {
                "image": TRAINER,
                "env": [{"name": "OMP_NUM_THREADS", "value": "1"}, {"name": "AWS_REGION", "value": "us-east-1"}],
                "resources": {"requests": {"cpu": "100m"}},
                "topologySpreadConstraints": [
                    apart | {"labelSelector": labels, "matchLabelKeys": ["tailorpo.dev/attempt"]}
                ],
                **template,
            },
        }
        document["spec"]["evaluation"] |= {"everyIterations": ITERATIONS, "images": 8}
        return document

    def start(self, document: Mapping[str, Any], hold: Iterable[int] = (1,)) -> Followed:
        """hold: attempts that do not end until the gate is opened for them."""
        for attempt in hold:
            self.gate.hold(document["metadata"]["name"], attempt)
        return Followed(self.kubectl, document, TIMEOUT_SECONDS, INTERVAL)

    def objects(self, prefix: str) -> dict[str, bytes]:
        """The objects in the bucket below a prefix."""
        client = self.server.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}

    def result(self, job: Followed) -> dict[str, str]:
        """SHA-256 of the tensors that a job has ended with: of its last checkpoint, and of its adapter."""
        status = job.phase("Succeeded")
        assert status["progress"]["steps"] == f"{ITERATIONS}/{ITERATIONS}"
        assert status["checkpoint"]["step"] == ITERATIONS
        found = dict[str, str]()
        for uri in (status["checkpoint"]["uri"], status["adapter"]):
            for key, content in self.objects(uri.removeprefix(f"s3://{BUCKET}/").rstrip("/") + "/").items():
                if key.endswith(".safetensors"):
                    found[Path(key).name] = digest(content)
        assert sorted(found) == ["adapter.safetensors", "optimizer.safetensors", "pytorch_lora_weights.safetensors"]
        return found


def digest(content: bytes) -> str:
    """Of the tensors of a file: what stands beside them in its header has no order."""
    found = hashlib.sha256()
    for name, tensor in sorted(load(content).items()):
        found.update(f"{name} {tensor.dtype} {tensor.shape}".encode() + tensor.tobytes())
    return found.hexdigest()


@contextmanager
def working(cluster: RealCluster, operator_user: Path, server: S3Server, log: Path) -> Iterator[Environment]:
    """A `Environment`; the operator's log is in a file."""
    admin, kubectl = cluster.kubectl(), cluster.kubectl(NAMESPACE)
    admin("create", "namespace", NAMESPACE)
    admin("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    keys = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
    kubectl.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": keys})
    server.make_bucket(BUCKET)
    gate = Gate()
    with (
        Proxy(server.endpoint) as proxy,
        OperatorProcess(operator_user, log, "--status-seconds=0.5", network=cluster.network) as operator,
    ):
        proxy.rule = gate.rule
        endpoint = f"http://{cluster.network.expose(int(proxy.endpoint.rpartition(':')[2]))}"
        yield Environment(kubectl, operator, cluster, server, gate, endpoint)
    admin("delete", "namespace", NAMESPACE, "--wait=false")
