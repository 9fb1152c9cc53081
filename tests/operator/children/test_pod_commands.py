"""A gang as its pods' containers would run it: their command lines, variables and files, with processes of our own."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tailorpo_operator.api import naming
from tailorpo_operator.api.types import Job
from tailorpo_operator.children.indexed_job import attempt
from tailorpo_trainer.telemetry import termination
from tests.documents import GOOD

SMALL = {
    "prompts": {"configMapKeyRef": {"name": "mine"}},
    "sampling": {"steps": 2, "trainedSteps": {"count": 1}},
    "training": {"iterations": 2, "promptsPerIteration": 2},
    "evaluation": {"everyIterations": 0},
    "runPolicy": {"rendezvousTimeoutSeconds": 100},
    "workers": 2,
}
CONFIG_MAPS = {"mine": {"prompts.txt": "a photo of a fox\na photo of a bee\n"}}
TAILORPO = [sys.executable, "-c", "import sys; from tailorpo_trainer.cli import main; sys.exit(main())"]


def write_document(template: dict[str, Any], folder: Path) -> None:
    """What a kubelet makes of the volume with the document."""
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    for source in volumes["tailorpo-document"]["projected"]["sources"]:
        for item in source.get("downwardAPI", {}).get("items", []):
            assert item["fieldRef"]["fieldPath"] == f"metadata.annotations['{naming.DOCUMENT}']"
            (folder / item["path"]).write_text(template["metadata"]["annotations"][naming.DOCUMENT])
        for item in source.get("configMap", {}).get("items", []):
            (folder / item["path"]).write_text(CONFIG_MAPS[source["configMap"]["name"]][item["key"]])


def start(template: dict[str, Any], index: int, folder: Path, port: int) -> subprocess.Popen[str]:
    """The container of one pod of the gang, whose first pod is at this machine's address."""
    [container] = template["spec"]["containers"]
    assert container["command"] == ["tailorpo"]
    document, work = folder / "etc", folder / f"work-{index}"
    document.mkdir(exist_ok=True)
    work.mkdir()
    write_document(template, document)
    replaced = {
        "$(JOB_COMPLETION_INDEX)": str(index),
        "/etc/tailorpo": str(document),
        "vivid-0003-0.tailorpo-rendezvous": "127.0.0.1",
        str(naming.MASTER_PORT): str(port),
    }
    arguments = container["args"]
    for text, value in replaced.items():
        assert any(text in argument for argument in arguments)
        arguments = [argument.replace(text, value) for argument in arguments]
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert variables["HOME"] == container["workingDir"]
    machine = {
        "HOME": str(work),
        "TAILORPO_METRICS_PORT": "0",  # both are on this machine
        "TAILORPO_TERMINATION_LOG": str(folder / f"log-{index}"),
    }
    return subprocess.Popen(
        [*TAILORPO, *arguments], cwd=work, env=os.environ | variables | machine, stderr=subprocess.PIPE, text=True
    )


def test_a_gang_trains_with_the_arguments_of_its_pods(tmp_path: Path) -> None:
    job = Job(metadata={"name": "vivid", "namespace": "team"}, spec=GOOD[0]["spec"] | SMALL)
    template = attempt(job, 3, "trainer:1")["spec"]["template"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pods = [start(template, index, tmp_path, port) for index in range(2)]
    ended = [(pod.communicate(timeout=200)[1], pod.returncode) for pod in pods]
    assert [code for _, code in ended] == [0, 0], ended
    assert "only a cluster reads" not in "".join(said for said, _ in ended)

    first, second = (termination.read(tmp_path / f"log-{index}") for index in range(2))
    assert first is not None
    assert second is not None
    assert (first.name, first.namespace, first.attempt, first.phase) == ("vivid", "team", 3, "Succeeded")
    assert (first.step, first.of) == (2, 2)
    assert second.phase == "Succeeded"
    assert (tmp_path / "work-0" / "runs" / "vivid" / "adapter").is_dir()
