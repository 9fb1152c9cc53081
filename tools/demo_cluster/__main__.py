"""Run TailorPO on a Kubernetes cluster of this machine, from the installation to the report, and end it again.

Real servers: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, Helm and Prometheus are built once from
their Go modules; SeaweedFS is the storage. The commands are those that a user would type.
"""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML

from tests.cluster import build
from tests.cluster.api import Kubectl
from tests.cluster.helm import HELM, Helm
from tests.cluster.processes import ServerError
from tests.cluster.prometheus import PROMETHEUS, prometheus
from tests.conftest import S3Server, Weed
from tools.demo_cluster import page
from tools.demo_cluster.stages import Stage, process_stage, real_stage

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tailorpo"
RULES = sorted((CHART / "files" / "rules").glob("*.yaml"))
NAMESPACE, RELEASE_NAMESPACE = "research", "tailorpo-system"
BUCKET, SECRET = "models", "s3-keys"
SCRAPE_SECONDS = 1.0
INSTALL_SECONDS, TRAINING_SECONDS = 300, 1800

Fields = dict[str, Any]


@click.command(help=__doc__)
@click.option("--real", is_flag=True, help="Run pods in containers on real nodes; needs Linux and root.")
@click.option("--iterations", default=8, show_default=True, type=click.IntRange(min=1), help="Of the training.")
@click.option(
    "--output",
    default=Path("runs/demo-cluster"),
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for what the job leaves, the pictures of the dashboards, and logs.",
)
def main(real: bool, iterations: int, output: Path) -> None:
    if not sys.platform.startswith("linux"):
        raise click.ClickException("needs Linux: each pod has an address of its own on loopback. `make demo` runs here")
    logs = output / "logs"
    shutil.rmtree(logs, ignore_errors=True)  # of an earlier demo
    logs.mkdir(parents=True)
    for programs in (build.SERVERS, HELM, PROMETHEUS):
        build.binaries(programs)
    with ExitStack() as stack:
        demo = Demo(stack, real, output, logs)
        demo.install()
        job = demo.submit(iterations)
        demo.watch(job)
        demo.describe(job)
        demo.collect(job)
        demo.draw(job)
        demo.end()


class Demo:
    """One run; every step says what it does and shows what a user would see."""

    def __init__(self, stack: ExitStack, real: bool, output: Path, logs: Path) -> None:
        self.output, self.logs, self.begun = output, logs, time.time()
        say("A cluster on this machine")
        self.stage: Stage = stack.enter_context((real_stage if real else process_stage)(logs))
        self.storage = stack.enter_context(_storage(logs))
        self.prometheus = stack.enter_context(
            prometheus(logs / "prometheus.log", rules=RULES, scrape_seconds=SCRAPE_SECONDS)
        )
        click.echo(f"  Kubernetes {build.kubernetes_version()}, {self.stage.where}")
        click.echo(f"  kubeconfig: {self.stage.plane.kubeconfig}")
        click.echo(f"  S3 (SeaweedFS): {self.storage.endpoint}    Prometheus: {self.prometheus.url}")
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        self.helm = Helm(Path(folder), self.stage.plane.kubeconfig, RELEASE_NAMESPACE)
        self.kubectl = self.stage.plane.kubectl(NAMESPACE)

    def install(self) -> None:
        say("Install the operator")
        arguments = ["install", "tailorpo", "charts/tailorpo", "--create-namespace", "--wait"]
        sets = [f"--set-json={json.dumps(self.stage.values)}"] if self.stage.values else []
        show("helm", *arguments, *sets, f"--namespace={RELEASE_NAMESPACE}")
        arguments[2] = str(CHART)
        notes = self.helm(*arguments, *sets, f"--timeout={INSTALL_SECONDS}s")
        click.echo(_indented(notes[: notes.find("NOTES:")].strip()))
        show("kubectl", "get", "pods", f"--namespace={RELEASE_NAMESPACE}")
        click.echo(_indented(self.stage.plane.kubectl(RELEASE_NAMESPACE)("get", "pods")))
        self.prometheus.configure(self.stage.targets(), RULES)

    def submit(self, iterations: int) -> str:
        say("Submit a job: two workers align the shipped model")
        document = job(iterations, f"http://{self.stage.expose(int(self.storage.endpoint.rpartition(':')[2]))}")
        path = self.output / "submitted.yaml"
        with path.open("w") as file:
            YAML(typ="rt").dump(document, file)
        secret = {"AWS_ACCESS_KEY_ID": self.storage.access_key, "AWS_SECRET_ACCESS_KEY": self.storage.secret_key}
        admin = self.stage.plane.kubectl()
        show("kubectl", "create", "namespace", NAMESPACE)
        admin("create", "namespace", NAMESPACE)
        show("kubectl", "create", "secret", "generic", SECRET, *(f"--from-literal={key}=…" for key in secret))
        self.kubectl("create", "secret", "generic", SECRET, *(f"--from-literal={k}={v}" for k, v in secret.items()))
        show("kubectl", "apply", f"--filename={path}")
        click.echo(_indented(self.kubectl("apply", f"--filename={path}")))
        return str(document["metadata"]["name"])

    def watch(self, name: str) -> None:
        """Prints what `kubectl get --watch` does until the job is over; tells Prometheus of each new pod."""
        show("kubectl", "get", "tpj", "--watch")
        seen, deadline = set[str](), time.monotonic() + TRAINING_SECONDS
        with _watching(self.kubectl) as watching:
            while True:
                if addresses := {each.address for each in self.stage.targets()} - seen:
                    seen |= addresses
                    self.prometheus.configure(self.stage.targets(), RULES)
                status = self.kubectl.json("get", "tpj", name).get("status", {})
                if status.get("phase") in ("Succeeded", "Failed"):
                    break
                if time.monotonic() > deadline or watching.poll() is not None:
                    raise click.ClickException(f"the job is not over after {TRAINING_SECONDS} s: {status}")
                time.sleep(1.0)
            time.sleep(2 * SCRAPE_SECONDS)  # for the last scrape
        if status["phase"] == "Failed":
            raise click.ClickException(f"the job failed: {status.get('message')}; logs are in {self.logs}")

    def describe(self, name: str) -> None:
        show("kubectl", "describe", "tpj", name)
        text = self.kubectl("describe", "tpj", name)
        click.echo(_indented(text[text.index("Status:") :]))

    def collect(self, name: str) -> None:
        """Copies the results of the last attempt from the storage."""
        adapter = self.kubectl("get", "tpj", name, "--output=jsonpath={.status.adapter}")
        bucket, _, prefix = adapter.removeprefix("s3://").rpartition("/")[0].partition("/")
        say(f"What the job has left in s3://{bucket}/{prefix}/")
        client, results, found = self.storage.client(), self.output / "results", Counter[str]()
        for key in keys(self.storage, f"{prefix}/"):
            path = Path(key).relative_to(prefix)
            found[path.parts[0] + ("/" if len(path.parts) > 1 else "")] += 1
            target = results / path
            target.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, key, str(target))
        click.echo(_indented("\n".join(f"{count:4} {where}" for where, count in found.items())))
        click.echo(f"  copied to {results}/")

    def draw(self, name: str) -> None:
        say("Dashboards, drawn from this Prometheus")
        pictures = page.pictures(self.prometheus.api, self.output, self.begun, SCRAPE_SECONDS, name)
        click.echo(_indented("\n".join(map(str, pictures))))
        rules = [rule for rule in self.prometheus.api.rules() if rule["type"] == "alerting"]
        firing = sorted(
            {each["labels"]["alertname"] for each in self.prometheus.api.alerts() if each["state"] == "firing"}
        )
        click.echo(f"  {len(rules)} alerts watch over it; firing: {', '.join(firing) or 'none'}")
        click.echo(f"\nAll on one page: {page.write(self.output, pictures)}")

    def end(self) -> None:
        say(f"The end, after {time.time() - self.begun:.0f} s; the cluster goes with this command")


def job(iterations: int, endpoint: str) -> Fields:
    """The job of `make demo`, on two workers, with less to do and its results in S3."""
    document: Fields = YAML(typ="rt").load(ROOT / "examples" / "demo.yaml")
    spec = document["spec"]
    spec["training"]["iterations"] = iterations
    spec["evaluation"] |= {"everyIterations": max(1, iterations // 2), "images": 24}
    spec["checkpoint"] = {
        "storage": f"s3://{BUCKET}/{document['metadata']['name']}",
        "endpoint": endpoint,
        "region": "us-east-1",
        "secretName": SECRET,
        "everyIterations": max(1, iterations // 4),
    }
    spec["workers"] = 2
    spec["template"] = {"env": [{"name": "OMP_NUM_THREADS", "value": "1"}]}  # both share the cores of this machine
    return document


def keys(storage: S3Server, prefix: str) -> list[str]:
    """The keys below a prefix of the bucket."""
    pages = storage.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [entry["Key"] for each in pages for entry in each.get("Contents", ())]


@contextmanager
def _storage(logs: Path) -> Iterator[S3Server]:
    with tempfile.TemporaryDirectory(prefix="tailorpo-storage-") as folder:
        weed = Weed(Path(folder))
        try:
            weed.start()
            weed.server.make_bucket(BUCKET)
            yield weed.server
        finally:
            weed.kill()


@contextmanager
def _watching(kubectl: Kubectl) -> Iterator["subprocess.Popen[str]"]:
    """kubectl's own lines, as they come, on standard output."""
    watching = kubectl.popen("get", "tpj", "--watch", output=None)
    try:
        yield watching
    finally:
        watching.kill()
        watching.wait()


def say(text: str) -> None:
    click.secho(f"\n{text}", bold=True)


def show(*command: str) -> None:
    """The command, as a user would type it."""
    click.secho(f"$ {shlex.join(command)}", fg="cyan")


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.rstrip().splitlines())


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(128 + signal.SIGINT)
    except (AssertionError, build.BuildError, ServerError) as error:  # AssertionError: not ready in time
        sys.exit(f"demo-cluster: {error}")
