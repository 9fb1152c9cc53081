"""`tailorpo render`: what the operator would make, and nothing else, on standard output."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tailorpo_operator.api import naming
from tailorpo_operator.api.types import Job
from tailorpo_operator.children import indexed_job
from tailorpo_trainer.cli import main
from tests.cluster.api import Cluster
from tests.documents import GOOD

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """run(argument, …): exit status, standard output and standard error."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        reported = capsys.readouterr()
        return status, reported.out, reported.err

    return call


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(document, …): a file with them."""

    def make(*documents: Any) -> Path:
        (tmp_path / "job.yaml").write_text("\n---\n".join(map(json.dumps, documents)))
        return tmp_path / "job.yaml"

    return make


def read(text: str, version: str = "1.2") -> list[Any]:
    yaml = YAML(typ="safe", pure=True)
    yaml.version = version
    return list(yaml.load_all(text))


def served(cluster: Cluster, data: Any) -> Job:
    """The job as the API server would store it."""
    stored = cluster.kubectl()("create", "--dry-run=server", "--output=json", "--filename=-", stdin=json.dumps(data))
    return Job.model_validate_json(stored)


@pytest.mark.parametrize("data", GOOD, ids=lambda data: data["spec"]["method"]["name"])
def test_it_prints_what_the_operator_makes(
    cluster: Cluster, definition: str, run: Run, write: Callable[..., Path], data: Any
) -> None:
    job = served(cluster, data)
    made = [child for child in (indexed_job.service(job), indexed_job.attempt(job, 3, "trainer:1")) if child]
    status, out, _ = run("render", write(data), "--attempt=3", "--image=trainer:1", "--namespace=default")
    assert status == 0
    assert read(out) == json.loads(json.dumps(made))
    assert read("".join(f"%YAML 1.1\n---\n{page}...\n" for page in out.split("---\n")), "1.1") == read(out)


def test_the_api_server_takes_what_it_prints(cluster: Cluster, run: Run, write: Callable[..., Path]) -> None:
    data = {**GOOD[0], "spec": GOOD[0]["spec"] | {"workers": 2}}
    _, out, _ = run("render", write(data))
    said = cluster.kubectl()(
        "create", "--dry-run=server", "--validate=strict", "--output=name", "--filename=-", stdin=out
    )
    assert said.split() == ["service/tailorpo-rendezvous", "job.batch/vivid-0001"]


def test_fields_and_namespace_can_be_set(run: Run, write: Callable[..., Path]) -> None:
    path = write(GOOD[0])
    _, out, _ = run("render", path, "--set", "spec.workers=2", "--namespace", "123")
    service, job = read(out)
    assert (service["kind"], job["kind"], job["spec"]["completions"]) == ("Service", "Job", 2)
    assert service["metadata"]["namespace"] == job["metadata"]["namespace"] == "123"
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == naming.IMAGE
    _, out, _ = run("render", path)
    [job] = read(out)
    assert "namespace" not in job["metadata"]


def test_all_jobs_of_a_file(run: Run, write: Callable[..., Path]) -> None:
    second = {**GOOD[1], "metadata": {"name": "other"}}
    _, out, err = run("render", write(GOOD[0], second))
    assert [each["metadata"]["name"] for each in read(out)] == ["vivid-0001", "other-0001"]
    assert err.count("warning: ") == 2
    assert "warning: other: spec.checkpoint.storage is not set" in err


def test_problems_are_said_as_validate_says_them(run: Run, write: Callable[..., Path]) -> None:
    path = write({**GOOD[0], "spec": GOOD[0]["spec"] | {"wrokers": 2, "processesPerWorker": 0}})
    assert run("render", path) == run("validate", path)
    status, out, err = run("render", path, "--namespace=No")
    assert (status, out) == (78, "")
    assert "metadata.namespace: 'No' must be lower-case letters" in err


def test_a_document_that_is_too_large(run: Run, write: Callable[..., Path]) -> None:
    path = write({**GOOD[0], "spec": GOOD[0]["spec"] | {"prompts": {"list": ["x" * 1000] * 71}}})
    status, out, err = run("render", path)
    assert (status, out) == (78, "")
    assert "job.yaml: vivid: the document has 7" in err
