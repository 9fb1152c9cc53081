"""What is allowed and most likely a mistake, in the pods of a document."""

from typing import Any

import pytest

from tailorpo_trainer import document
from tailorpo_trainer.spec.cautions import cautions
from tests.documents import GOOD


def said(**spec: Any) -> list[str]:
    return list(cautions(document.parse({**GOOD[0], "spec": {**GOOD[0]["spec"], **spec}}).spec))


def limits(**amounts: Any) -> dict[str, Any]:
    return {"resources": {"limits": {name.replace("__", "/").replace("_", "."): n for name, n in amounts.items()}}}


@pytest.mark.parametrize(
    ("processes", "template", "words"),
    [
        (4, limits(nvidia_com__gpu=1), "a worker 1 accelerator, and 4 processes need one each: they would share it"),
        (4, limits(nvidia_com__gpu="2"), "use 2"),
        (1, limits(amd_com__gpu=8), "a worker 8 accelerators, and 1 process uses one each: 7 would be idle; use 8"),
        (2, limits(nvidia_com__gpu=2), None),
        (4, limits(cpu=1), None),
        (4, {}, None),
        (4, {**limits(nvidia_com__gpu=1), "resourceClaims": [{"name": "a"}]}, None),
    ],
)
def test_each_process_has_an_accelerator_of_its_own(
    processes: int, template: dict[str, Any], words: str | None
) -> None:
    found = said(processesPerWorker=processes, template=template)
    assert len(found) == (0 if words is None else 1)
    assert words is None or words in found[0]


@pytest.mark.parametrize("field", ["limits", "requests"])
@pytest.mark.parametrize("name", ["zzUnknown", "gpu", "storage", "Memory"])
def test_a_resource_that_kubernetes_does_not_know(field: str, name: str) -> None:
    [sentence] = said(template={"resources": {field: {name: 1, "cpu": 1, "hugepages-2Mi": 1, "example.com/fpga": 1}}})
    assert sentence.startswith(f"spec.template.resources.{field}: Kubernetes knows no resource {name!r}")
