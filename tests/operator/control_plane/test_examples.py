"""`manifests/examples/`: each file says what it shows, and is what the API server and the trainer take."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tailorpo_trainer import cli
from tests.cluster.api import Kubectl

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "manifests" / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_each_is_taken_as_it_is(
    path: Path, definition: str, kubectl: Kubectl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert path.read_text().startswith("# ")
    kubectl("apply", "--server-side", "--validate=strict", "--dry-run=server", f"--filename={path}")
    jobs = [each for each in YAML(typ="safe").load_all(path) if each["kind"] == "TailorPOJob"]
    assert len(jobs) == (path.stem != "network-policy")
    for job in jobs:
        document = tmp_path / "job.yaml"
        with document.open("w") as file:
            YAML(typ="safe").dump(job, file)
        for command in ("validate", "render"):
            assert cli.main([command, str(document)]) == 0, capsys.readouterr().err
            assert capsys.readouterr().err == ""


def test_the_reward_service_runs_the_server_of_the_docs() -> None:
    objects = list(YAML(typ="safe").load_all(ROOT / "manifests" / "examples" / "reward-service.yaml"))
    [script] = [each["data"]["reward_server.py"] for each in objects if each["kind"] == "ConfigMap"]
    assert script == (ROOT / "docs" / "examples" / "reward_server.py").read_text()
