"""What a job becomes, as values."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tailorpo_operator.api import naming
from tailorpo_operator.api.types import Job
from tailorpo_operator.children import indexed_job, pod_document
from tailorpo_trainer import document
from tailorpo_trainer.checkpoint import experiment_hash
from tailorpo_trainer.cli.run import cluster_fields
from tailorpo_trainer.spec import rules
from tailorpo_trainer.spec.cautions import cautions
from tailorpo_trainer.spec.pod_template_rules import RESERVED_VARIABLES
from tests.documents import GOOD

IMAGE = "trainer:1"
HARDENED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}


def job(*, name: str = "vivid", namespace: str | None = "team", **parts: Any) -> Job:
    """A job of the API server; keyword arguments replace whole parts of `spec`, under their YAML names."""
    metadata = {"name": name, "uid": "u-1", **({"namespace": namespace} if namespace else {})}
    return Job(metadata=metadata, spec=deepcopy(GOOD[0]["spec"]) | parts)


def pod(made: Job, number: int = 1) -> Any:
    return indexed_job.attempt(made, number, IMAGE)["spec"]["template"]


def container(made: Job, number: int = 1) -> Any:
    [only] = pod(made, number)["spec"]["containers"]
    return only


def variables(made: Job) -> dict[str, Any]:
    found = [(each["name"], each.get("value", each.get("valueFrom"))) for each in container(made)["env"]]
    assert len(dict(found)) == len(found)
    return dict(found)


def volumes(made: Job) -> dict[str, Any]:
    return {each["name"]: each for each in pod(made)["spec"]["volumes"]}


def mounts(made: Job) -> dict[str, str]:
    return {each["mountPath"]: each["name"] for each in container(made)["volumeMounts"]}


def travelled(made: Job, folder: Path) -> Any:
    """The document as the trainer reads it in the pod."""
    text = pod(made)["metadata"]["annotations"][naming.DOCUMENT]
    assert text.isascii()
    (folder / "job.yaml").write_text(text)
    return document.read(folder / "job.yaml")


def test_an_attempt_is_one_gang_that_nothing_is_added_to() -> None:
    made = indexed_job.attempt(job(workers=4), 3, IMAGE)
    assert made["metadata"] == {
        "name": "vivid-0003",
        "namespace": "team",
        "labels": {
            "app.kubernetes.io/name": "tailorpo-trainer",
            "app.kubernetes.io/managed-by": "tailorpo-operator",
            "tailorpo.dev/job": "vivid",
            "tailorpo.dev/attempt": "3",
        },
    }
    assert {key: value for key, value in made["spec"].items() if key != "template"} == {
        "completionMode": "Indexed",
        "completions": 4,
        "parallelism": 4,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "scheduling": {"schedulingPolicy": {"gang": {"minCount": 4}}},
    }
    assert made["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert made["spec"]["template"]["metadata"]["labels"] == made["metadata"]["labels"]


def test_names_have_room() -> None:
    longest = indexed_job.attempt(job(name="a" * 40, workers=1), 9999, IMAGE)["metadata"]["name"]
    assert len(f"{longest}-1023") <= 63, "the host name of the last pod is a label"


def test_one_service_names_the_first_workers_of_all_jobs_of_a_namespace() -> None:
    made = indexed_job.service(job(workers=2))
    assert made == indexed_job.service(job(name="dull", workers=3)) == indexed_job.rendezvous("team")
    assert made is not None
    assert made["spec"] == {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {
            "app.kubernetes.io/name": "tailorpo-trainer",
            "app.kubernetes.io/managed-by": "tailorpo-operator",
            "batch.kubernetes.io/job-completion-index": "0",
        },
        "ports": [{"name": "master", "port": 29400}],
    }
    for attempt in (1, 2):
        template = pod(job(workers=2), attempt)
        assert template["spec"]["subdomain"] == made["metadata"]["name"] == "tailorpo-rendezvous"
        by_kubernetes = {"batch.kubernetes.io/job-completion-index": "0"}
        assert made["spec"]["selector"].items() <= (template["metadata"]["labels"] | by_kubernetes).items()


@pytest.mark.parametrize("change", [
    {"clusterIP": "10.0.0.7"},
    {"publishNotReadyAddresses": None},
    {"selector": {"app": "another"}},
    {"selector": None},
])  # fmt: skip
def test_a_service_that_leads_elsewhere_is_known(change: dict[str, Any]) -> None:
    made = indexed_job.rendezvous("team")
    by_the_server = {"clusterIPs": ["None"], "sessionAffinity": "None", "type": "ClusterIP"}
    assert indexed_job.is_rendezvous({**made, "spec": made["spec"] | by_the_server})
    assert not indexed_job.is_rendezvous({**made, "spec": made["spec"] | change})


def test_one_worker_needs_no_service() -> None:
    assert indexed_job.service(job()) is None
    assert "subdomain" not in pod(job())["spec"]


@pytest.mark.parametrize(("workers", "processes", "arguments"), [
    (1, 1, []),
    (1, 4, ["--processes=4"]),
    (2, 1, ["--processes=1", "--nodes=2", "--node-rank=$(JOB_COMPLETION_INDEX)",
            "--master-addr=vivid-0007-0.tailorpo-rendezvous", "--master-port=29400"]),
])  # fmt: skip
def test_the_command_line(workers: int, processes: int, arguments: list[str]) -> None:
    made = container(job(workers=workers, processesPerWorker=processes), 7)
    assert made["command"] == ["tailorpo"]
    assert made["args"] == ["run", "/etc/tailorpo/job.yaml", *arguments]


def test_the_environment() -> None:
    reported = variables(job(runPolicy={"stallTimeoutSeconds": 60}))
    assert reported == {
        "TAILORPO_ATTEMPT": "1",
        "TAILORPO_METRICS_HOST": "::",
        "TAILORPO_METRICS_PORT": "9400",
        "TAILORPO_METRICS_STALL_SECONDS": "60",
        "HOME": "/var/lib/tailorpo",
    }
    assert {name for name in reported if name.startswith("TAILORPO_")} <= set(RESERVED_VARIABLES)


def test_a_users_variable_stands_alone() -> None:
    """Of two entries with one name the API server's patches would take either."""
    template = {
        "env": [{"name": "HOME", "value": "/data"}, {"name": "HF_HOME", "value": "/a"}, {"name": "A", "value": ""}],
        "modelCache": {"claimName": "models"},
        "hubToken": {"name": "hub", "key": "token"},
    }
    reported = variables(job(template=template))
    assert (reported["HOME"], reported["HF_HOME"], reported["A"]) == ("/data", "/a", "")
    assert reported["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}


def test_variables_from_secrets() -> None:
    template = {"envFrom": [{"prefix": "A_", "configMapRef": {"name": "c"}}]}
    made = container(job(template=template, checkpoint={"storage": "s3://a/b", "secretName": "s3"}))
    assert made["envFrom"] == [{"secretRef": {"name": "s3"}}, {"prefix": "A_", "configMapRef": {"name": "c"}}]


def test_hardened_unless_a_document_says_otherwise() -> None:
    spec = pod(job())["spec"]
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container(job())["securityContext"] == HARDENED
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False

    other = job(template={"securityContext": {}, "podSecurityContext": {"fsGroup": 5}})
    assert pod(other)["spec"]["securityContext"] == {"fsGroup": 5}
    assert not container(other).get("securityContext")


def test_what_must_be_written_to_is_a_volume() -> None:
    plain = job()
    assert mounts(plain) == {
        "/etc/tailorpo": "tailorpo-document",
        "/var/lib/tailorpo": "tailorpo-work",
        "/tmp": "tailorpo-tmp",
        "/dev/shm": "tailorpo-shm",
    }
    assert set(volumes(plain)) == set(mounts(plain).values())
    assert container(plain)["workingDir"] == "/var/lib/tailorpo"
    assert volumes(plain)["tailorpo-shm"]["emptyDir"] == {"medium": "Memory"}
    sized = volumes(job(template={"shmSize": "2Gi"}))
    assert sized["tailorpo-shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}


def test_our_volume_gives_way_to_a_users() -> None:
    template = {
        "volumes": [{"name": "scratch", "nfs": {"server": "a", "path": "/"}}],
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp/"}, {"name": "scratch", "mountPath": "/data"}],
    }
    made = job(template=template)
    assert "/tmp" not in mounts(made)
    assert "tailorpo-tmp" not in volumes(made)
    assert set(volumes(made)) == set(mounts(made).values())


@pytest.mark.parametrize(("cache", "source"), [
    ({"claimName": "models"}, {"persistentVolumeClaim": {"claimName": "models"}}),
    ({"hostPath": "/srv", "mountPath": "/m"}, {"hostPath": {"path": "/srv", "type": "DirectoryOrCreate"}}),
])  # fmt: skip
def test_the_cache_of_models(cache: dict[str, str], source: dict[str, Any]) -> None:
    made, path = job(template={"modelCache": cache}), cache.get("mountPath", "/var/cache/huggingface")
    assert volumes(made)["tailorpo-models"] == {"name": "tailorpo-models", **source}
    assert mounts(made)[path] == "tailorpo-models"
    assert variables(made)["HF_HOME"] == variables(made)["XDG_CACHE_HOME"] == path


def test_where_and_in_which_queue_it_runs() -> None:
    made = job(
        template={"hostNetwork": True},
        scheduling={"queueName": "research", "priorityClassName": "low", "schedulerName": "mine"},
        runPolicy={"terminationGracePeriodSeconds": 33, "suspend": True},
    )
    child, spec = indexed_job.attempt(made, 1, IMAGE), pod(made)["spec"]
    assert child["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert "suspend" not in child["spec"], "the queue's to set"
    assert "kueue.x-k8s.io/queue-name" not in pod(made)["metadata"]["labels"]
    assert (spec["priorityClassName"], spec["schedulerName"], spec["terminationGracePeriodSeconds"]) == (
        "low",
        "mine",
        33,
    )
    assert (spec["hostNetwork"], spec["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")


def test_a_cluster_that_gives_users_is_left_to_it() -> None:
    made = indexed_job.attempt(job(), 1, IMAGE, with_ids=False)["spec"]["template"]["spec"]
    assert made["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    mine = job(template={"podSecurityContext": {"runAsUser": 5}})
    made = indexed_job.attempt(mine, 1, IMAGE, with_ids=False)["spec"]["template"]["spec"]
    assert made["securityContext"] == {"runAsUser": 5}


def test_the_image() -> None:
    assert container(job())["image"] == IMAGE
    assert container(job(template={"image": "mine:2"}))["image"] == "mine:2"


def test_a_child_goes_with_its_job() -> None:
    for workers in (1, 2):
        made = job(workers=workers)
        child = indexed_job.attempt(made, 1, IMAGE)
        mine = indexed_job.with_owner(child, made)
        assert mine["metadata"].pop("ownerReferences") == [
            {
                "apiVersion": "tailorpo.dev/v1alpha1",
                "kind": "TailorPOJob",
                "name": "vivid",
                "uid": "u-1",
                "controller": workers == 1,  # Kubernetes makes no gang of a Job that somebody controls
            }
        ]
        annotations = mine["metadata"].pop("annotations")
        assert annotations == {
            "tailorpo.dev/generation": str(made.generation),
            "tailorpo.dev/template-hash": indexed_job.template_hash(made),
        }
        assert mine == child


def test_the_hash_is_of_what_the_pods_are_made_of() -> None:
    made = indexed_job.template_hash(job(workers=2))
    assert made == indexed_job.template_hash(job(workers=2, runPolicy={"suspend": True}))
    assert made != indexed_job.template_hash(job(workers=2, template={"image": "mine:2"}))
    assert made != indexed_job.template_hash(job(workers=3))


def test_metadata_of_the_job_and_of_its_template_reach_job_and_pods() -> None:
    own = {"labels": {"team": "x", "other": "y", "kueue.x-k8s.io/priority-class": "low", "tailorpo.dev/job": "z"}}
    own["annotations"] = {"team/note": "n", "other": "y"}
    plain = job(template={"labels": {"stage": "s"}, "annotations": {"example.com/a": "b"}})
    given = plain.model_copy(update={"metadata": {**plain.metadata, **own}})
    made = indexed_job.attempt(given.copying(["team", "kueue.x-k8s.io/", "tailorpo.dev/"]), 1, IMAGE)
    ours = naming.of_attempt("vivid", 1)
    labels = {"team": "x", "kueue.x-k8s.io/priority-class": "low", "stage": "s", **ours}
    annotations = {"team/note": "n", "example.com/a": "b"}
    assert made["metadata"]["labels"] == made["spec"]["template"]["metadata"]["labels"] == labels
    assert made["metadata"]["annotations"] == annotations
    assert made["spec"]["template"]["metadata"]["annotations"].items() >= annotations.items()
    assert indexed_job.with_owner(made, given)["metadata"]["annotations"].items() >= annotations.items()
    assert indexed_job.attempt(given, 1, IMAGE)["metadata"]["labels"] == {"stage": "s", **ours}, "nothing unless chosen"


def test_a_queue_by_its_label() -> None:
    plain = job(workers=2)
    labelled = plain.model_copy(update={"metadata": {**plain.metadata, "labels": {naming.QUEUE: "research"}}})
    made = indexed_job.attempt(labelled.copying(naming.COPIED_PREFIXES), 1, IMAGE)
    assert made["metadata"]["labels"][naming.QUEUE] == "research"
    assert naming.QUEUE not in made["spec"]["template"]["metadata"]["labels"], "the Job waits, not each pod"
    assert "scheduling" not in made["spec"], "a queue places all or none"


def test_an_edit_of_labels_outdates_an_attempt() -> None:
    """Though it is no new generation of the job."""
    plain = job()
    labelled = plain.model_copy(update={"metadata": {**plain.metadata, "labels": {"team": "x", "other": "y"}}})
    team, nothing = labelled.copying(["team"]), labelled.copying([])
    made = indexed_job.template_hash(nothing)
    assert not indexed_job.is_outdated(nothing, nothing.generation, made)
    assert indexed_job.is_outdated(team, team.generation, made)
    assert not indexed_job.is_outdated(team, team.generation, indexed_job.template_hash(team))
    assert not indexed_job.is_outdated(team, team.generation, "0" * 16 + indexed_job.template_hash(team)[16:])
    assert indexed_job.is_outdated(team, team.generation + 1, "0" * 16 + indexed_job.template_hash(team)[16:])


def test_the_cautions_of_a_document_are_those_of_a_job() -> None:
    strange = job(processesPerWorker=4, template={"resources": {"limits": {"nvidia.com/gpu": 1, "zzUnknown": 1}}})
    assert indexed_job.warnings(strange)[:2] == [*cautions(strange.spec)]
    assert len([*cautions(strange.spec)]) == 2


def test_who_is_asked_for_a_gang() -> None:
    def asked(**spec: Any) -> bool:
        return "scheduling" in indexed_job.attempt(job(**spec), 1, IMAGE)["spec"]

    assert asked(workers=2)
    assert asked(workers=2, scheduling={"gang": "Required"})
    assert not asked(workers=2, scheduling={"gang": "None"})
    assert not asked(workers=2, scheduling={"queueName": "research"}), "a queue does so itself"
    assert not asked(workers=1)


@pytest.mark.parametrize("data", GOOD, ids=lambda data: data["spec"]["method"]["name"])
def test_the_trainer_reads_what_was_asked_for(data: dict[str, Any], tmp_path: Path) -> None:
    made = Job(metadata={"name": "vivid", "namespace": "team", "labels": {"a": "b"}}, spec=data["spec"])
    read, asked = travelled(made, tmp_path), document.parse(data)
    assert cluster_fields(read) == [], "the trainer would say that it leaves them out"
    assert (read.metadata.name, read.metadata.namespace) == ("vivid", "team")
    assert read.spec.run_policy.termination_grace_period_seconds == 120
    for part in ("model", "lora", "rewards", "method", "sampling", "optimizer", "training"):
        assert getattr(read.spec, part) == getattr(asked.spec, part)


@pytest.mark.parametrize("data", GOOD, ids=lambda data: data["spec"]["method"]["name"])
def test_a_default_does_not_travel(data: dict[str, Any]) -> None:
    """An older trainer may not know its field; and whoever filled it in, the document is the same."""
    parsed = document.parse(data)
    specs = (parsed.spec, data["spec"], document.values(parsed)["spec"])
    [text] = {pod_document.text(Job(metadata={"name": "vivid"}, spec=spec)) for spec in specs}
    assert not {"optimizer", "lora"} & set(json.loads(text)["spec"]) - set(data["spec"])
    assert rules.resolve(rules.unresolve(parsed.spec)) == parsed.spec
    assert rules.unresolve(rules.unresolve(parsed.spec)) == rules.unresolve(parsed.spec)


def test_the_timeouts_travel(tmp_path: Path) -> None:
    policy = {"rendezvousTimeoutSeconds": 5, "stallTimeoutSeconds": 6, "terminationGracePeriodSeconds": 7}
    read = travelled(job(runPolicy=policy | {"backoffLimit": 9}), tmp_path).spec.run_policy
    assert (read.rendezvous_timeout_seconds, read.stall_timeout_seconds, read.termination_grace_period_seconds) == (
        5,
        6,
        7,
    )
    assert read.backoff_limit == 3


def test_any_text_travels(tmp_path: Path) -> None:
    prompts = [
        "$(HOME) $$",
        "ein Bär \U0001f98a",
        "a\x7fb",
        "tab\t, \u2028, \x85",
        "'a' \"b\" \\n",
        "# : {} []",
        "yes",
        "1e-4",
    ]
    read = travelled(job(prompts={"list": prompts}), tmp_path)
    assert read.spec.prompts.list_ == prompts


def test_a_document_that_no_pod_has_room_for() -> None:
    fits = job(prompts={"list": ["x" * 1000] * 60})
    assert len(pod_document.text(fits)) <= pod_document.MAX_BYTES
    with pytest.raises(
        indexed_job.TooLarge, match=r"has 6\d,\d{3} bytes, and pods take at most 65,536: .*configMapKeyRef"
    ):
        indexed_job.attempt(job(prompts={"list": ["x" * 1000] * 66}), 1, IMAGE)


def test_prompts_of_config_maps_lie_beside_the_document(tmp_path: Path) -> None:
    made = job(
        prompts={"configMapKeyRef": {"name": "a"}},
        evaluation={"prompts": {"configMapKeyRef": {"name": "b", "key": "prompts.txt"}}},
    )
    [_, first, second] = volumes(made)["tailorpo-document"]["projected"]["sources"]
    assert first == {"configMap": {"name": "a", "items": [{"key": "prompts.txt", "path": "prompts.txt"}]}}
    assert second == {"configMap": {"name": "b", "items": [{"key": "prompts.txt", "path": "evaluation/prompts.txt"}]}}
    read = travelled(made, tmp_path)
    assert read.spec.prompts.file == "prompts.txt"
    assert read.spec.evaluation.prompts.file == "evaluation/prompts.txt"
    # A run that began on a laptop goes on here.
    laptop = document.parse({**GOOD[0], "spec": {**GOOD[0]["spec"], "prompts": {"file": "prompts.txt"}}})
    assert experiment_hash(read.spec) == experiment_hash(laptop.spec)


@pytest.mark.parametrize("key", ["job.yaml", "evaluation", "prompts"])
def test_a_key_hides_nothing(key: str) -> None:
    made = job(prompts={"configMapKeyRef": {"name": "a", "key": key}})
    [_, source] = volumes(made)["tailorpo-document"]["projected"]["sources"]
    assert source["configMap"]["items"] == [{"key": key, "path": f"prompts/{key}"}]


def test_relative_paths_start_from_the_working_folder(tmp_path: Path) -> None:
    made = job(
        prompts={"file": "./a.txt"},
        evaluation={"prompts": {"file": "/b.txt"}},
        checkpoint={"storage": "s3://a/b", "caFile": "ca.pem"},
    )
    read = travelled(made, tmp_path).spec
    assert read.prompts.file == "/var/lib/tailorpo/a.txt"
    assert read.evaluation.prompts.file == "/b.txt"
    assert (read.checkpoint.storage, read.checkpoint.ca_file) == ("s3://a/b", "/var/lib/tailorpo/ca.pem")
    read = travelled(job(checkpoint={"storage": "file://out"}), tmp_path).spec
    assert read.checkpoint.storage == "/var/lib/tailorpo/out"


def on(source: dict[str, Any], path: str = "/data", **mount: Any) -> dict[str, Any]:
    return {
        "volumes": [{"name": "data", **source}, {"name": "deep", "persistentVolumeClaim": {"claimName": "b"}}],
        "volumeMounts": [{"name": "data", "mountPath": path, **mount}, {"name": "deep", "mountPath": "/data/deep"}],
    }


CLAIM = {"persistentVolumeClaim": {"claimName": "a"}}


@pytest.mark.parametrize(("storage", "template", "warning"), [
    ("s3://a/b", {}, None),
    (None, {}, "spec.checkpoint.storage is not set"),
    ("/data/run", {}, "/data/run is on none of spec.template.volumeMounts"),
    ("/data/run", on(CLAIM), None),
    ("/data", on(CLAIM, "/data/"), None),
    ("file:///data/run", on(CLAIM), None),
    ("/database", on(CLAIM), "/database is on none"),
    ("run", on(CLAIM), "/var/lib/tailorpo/run is on none"),
    ("run", on(CLAIM, "/var/lib/tailorpo"), None),
    ("/data/run", on(CLAIM, readOnly=True), "on volume 'data', which cannot be written"),
    ("/data/run", on({"emptyDir": {}}), "on volume 'data', which goes with the pod"),
    ("/data/deep/run", on({"emptyDir": {}}), None),
    ("/data/run", on({"hostPath": {"path": "/srv"}}), "which is a folder of one node"),
    ("/data/run", on({"secret": {"secretName": "a"}}), "which cannot be written"),
])  # fmt: skip
def test_a_storage_that_keeps_nothing_is_warned_of(storage: str | None, template: Any, warning: str | None) -> None:
    said = indexed_job.warnings(job(checkpoint={"storage": storage} if storage else {}, template=template))
    assert len(said) == (warning is not None)
    assert warning is None or warning in said[0]


def test_a_file_that_nothing_brings_is_warned_of() -> None:
    kept = {"storage": "s3://a/b", "caFile": "ca.pem"}
    [first, second] = indexed_job.warnings(job(prompts={"file": "a.txt"}, checkpoint=kept))
    assert first.startswith("spec.prompts.file: 'a.txt' starts from /var/lib/tailorpo in a pod")
    assert second.startswith("spec.checkpoint.caFile: 'ca.pem'")
    mounted = on(CLAIM, "/var/lib/tailorpo/data")
    assert (
        indexed_job.warnings(job(prompts={"file": "data/a.txt"}, template=mounted, checkpoint={"storage": "s3://a/b"}))
        == []
    )


def test_values_are_json() -> None:
    """What a child is made of travels to the API server as it is."""
    for data in GOOD:
        made = Job(metadata={"name": "vivid"}, spec=data["spec"])
        for child in filter(None, (indexed_job.service(made), indexed_job.attempt(made, 1, IMAGE))):
            assert json.loads(json.dumps(child, allow_nan=False)) == child
