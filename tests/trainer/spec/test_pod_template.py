"""Where a run runs is checked on any machine: one sentence for each mistake."""

from typing import Any

import pytest

from tailorpo_trainer import document

GOOD: dict[str, Any] = {
    "apiVersion": "tailorpo.dev/v1alpha1",
    "kind": "TailorPOJob",
    "metadata": {"name": "vivid"},
    "spec": {
        "prompts": {"builtin": "animals"},
        "rewards": [{"name": "colourfulness"}],
        "method": {"name": "tailorpo"},
    },
}
SECRET = {"secretKeyRef": {"name": "a", "key": "b"}}


def problems(**parts: Any) -> list[str]:
    """What is wrong with a document that has these parts in its spec."""
    try:
        document.parse({**GOOD, "spec": {**GOOD["spec"], **parts}})
    except document.DocumentError as error:
        return [f"{problem.path}: {problem.message}" for problem in error.problems]
    return []


TEMPLATES: list[tuple[dict[str, Any], str]] = [
    ({"imge": "a"}, "imge: unknown field: did you mean 'image'?"),
    ({"image": "a b"}, "image: 'a b' must have no spaces"),
    ({"image": ""}, "image: must not be empty"),
    ({"imagePullPolicy": "Sometimes"},
     "imagePullPolicy: 'Sometimes' is not one of 'Always', 'IfNotPresent' or 'Never'"),
    (
        {"imagePullSecrets": [{"name": "A"}]},
        "imagePullSecrets[0].name: 'A' must be lower-case letters, digits, '-' and '.', each part from and to a letter "
        "or digit",
    ),
    ({"resources": {"limits": {"cpu": 0.5}}}, "resources.limits.cpu: 0.5 must be a whole number, or text such as "
     "'500m', '1.5' or '16Gi'"),
    ({"resources": {"limits": {"memory": "16 GB"}}}, "resources.limits.memory: '16 GB' must be a whole number, or text "
     "such as '500m', '1.5' or '16Gi'"),
    ({"resources": {"limits": {"gpu!": 1}}},
     "resources.limits.gpu!: 'gpu!' must be a label's key, such as team or example.com/team"),
    ({"shmSize": -1}, "shmSize: -1 must be a whole number, or text such as '500m', '1.5' or '16Gi'"),
    ({"env": [{"name": "1A"}]},
     "env[0].name: '1A' must be letters, digits, '-', '_' and '.', and not begin with a digit"),
    ({"env": [{"value": "x"}]}, "env[0].name: is required: Name of the variable"),
    ({"env": [{"name": "A", "value": 5}]}, 'env[0].value: 5 must be text: put it in quotes, "5"'),
    ({"env": [{"name": "A", "value": "x"}, {"name": "A", "value": "y"}]},
     "env[1].name: 'A' stands twice: first in spec.template.env[0]"),
    ({"env": [{"name": "A", "value": "x", "valueFrom": SECRET}]},
     "env[0].valueFrom: stands beside `value`: leave one of them out"),
    ({"env": [{"name": "A", "valueFrom": {}}]},
     "env[0].valueFrom: needs exactly one of 'secretKeyRef' or 'configMapKeyRef' or 'fieldRef' or 'resourceFieldRef', "
     "has none"),
    ({"env": [{"name": "TAILORPO_ATTEMPT", "value": "1"}]},
     "env[0].name: 'TAILORPO_ATTEMPT' is set by TailorPO: leave it out"),
    ({"envFrom": [{"secretRef": {"name": "a"}, "configMapRef": {"name": "a"}}]},
     "envFrom[0]: needs exactly one of 'configMapRef' or 'secretRef', has 'configMapRef' and 'secretRef'"),
    ({"volumes": [{"name": "a", "emptyDir": None}]},
     "volumes[0]: needs exactly one of 'emptyDir' or 'persistentVolumeClaim' or 'hostPath' or 'nfs' or 'configMap' or "
     "'secret' or 'projected' or 'csi' or 'ephemeral' or 'downwardAPI' or 'image', has none"),
    ({"volumes": [{"name": "a", "persistentVolumClaim": {}}]},
     "volumes[0].persistentVolumClaim: unknown field: did you mean 'persistentVolumeClaim'?"),
    ({"volumes": [{"name": "tailorpo-a", "emptyDir": {}}]},
     "volumes[0].name: 'tailorpo-a' is a name of TailorPO's own: use one without 'tailorpo-'"),
    ({"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
     "volumeMounts[0].name: 'data' is the name of none of spec.template.volumes"),
    ({"volumes": [{"name": "a", "emptyDir": {}}], "volumeMounts": [{"name": "a", "mountPath": "a"}]},
     "volumeMounts[0].mountPath: 'a' must be an absolute path without ':'"),
    ({"volumes": [{"name": "a", "emptyDir": {}}], "volumeMounts": [{"name": "a", "mountPath": "/dev/shm"}]},
     "volumeMounts[0].mountPath: /dev/shm is mounted by TailorPO: set its size as spec.template.shmSize"),
    ({"volumes": [{"name": "a", "emptyDir": {}}], "volumeMounts": [{"name": "a", "mountPath": "/etc/tailorpo/a"}]},
     r"volumeMounts[0].mountPath: /etc/tailorpo holds the document, and nothing else: choose another folder"),
    ({"modelCache": {"claimName": "a", "hostPath": "/a"}},
     "modelCache: needs exactly one of 'claimName' or 'hostPath', has 'claimName' and 'hostPath'"),
    ({"labels": {"tailorpo.dev/job": "x"}},
     r"labels.tailorpo\.dev/job: is set by TailorPO or Kubernetes: leave it out"),
    ({"labels": {"team": "a b"}},
     "labels.team: 'a b' must be letters, digits, '-', '_' and '.', from and to a letter or digit"),
    ({"topologySpreadConstraints": ["x"]}, "topologySpreadConstraints[0]: 'x' must be a mapping"),
    ({"affinity": {"podAfinity": {}}}, "affinity.podAfinity: unknown field: did you mean 'podAffinity'?"),
    ({"securityContext": 5}, "securityContext: 5 must be a mapping"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "expected"), TEMPLATES, ids=[text for _, text in TEMPLATES])
def test_one_mistake_of_the_template_is_one_sentence(template: dict[str, Any], expected: str) -> None:
    assert problems(template=template) == [f"spec.template.{expected}"]


def test_other_mistakes_are_said_beside_an_entry_that_is_no_mapping() -> None:
    found = problems(template={"topologySpreadConstraints": ["x"], "modelCache": {}})
    assert [line.split(":")[0] for line in found] == [
        "spec.template.modelCache",
        "spec.template.topologySpreadConstraints[0]",
    ]


@pytest.mark.parametrize(
    ("scheduling", "expected"),
    [
        ({"gang": "auto"}, "gang: 'auto' is not one of 'Auto', 'Required' or 'None': did you mean 'Auto'?"),
        (
            {"queueName": "a_b"},
            "queueName: 'a_b' must be lower-case letters, digits and '-', from and to a letter or digit",
        ),
        ({"priority": 5}, "priority: unknown field: did you mean 'priorityClassName'?"),
    ],
)
def test_scheduling(scheduling: dict[str, Any], expected: str) -> None:
    assert problems(scheduling=scheduling) == [f"spec.scheduling.{expected}"]


@pytest.mark.parametrize("amount", [0, 1, "1", "500m", "1.5", "16Gi", "100M", 2**63 - 1])
def test_amounts(amount: int | str) -> None:
    assert problems(template={"resources": {"limits": {"nvidia.com/gpu": amount}}, "shmSize": amount}) == []


@pytest.mark.parametrize("amount", [True, None, -1, 2**63, "", "1 Gi", "1gi", "-1", "1e3", "Gi", ".5", "1\n", [1]])
def test_what_is_no_amount(amount: Any) -> None:
    found = problems(template={"resources": {"limits": {"cpu": amount}}})
    assert len(found) == (amount is not None)  # null is absent
