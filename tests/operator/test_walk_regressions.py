"""What random walks have found, each by the shortest walk that shows it."""

import json

import pytest

from tailorpo_trainer.exits import ExitCode
from tests.cluster.api import Kubectl
from tests.cluster.pods import PodDriver
from tests.cluster.waiting import until
from tests.operator.operating import Watched, job, last_words

pytestmark = pytest.mark.usefixtures("operator")


def test_a_worker_that_is_done_before_the_others_does_not_keep_them_from_being_suspended(
    kubectl: Kubectl, pod_driver: PodDriver
) -> None:
    """The others ran on: the Job controller stops a gang at a pod that fails, not at one that is done."""
    watched = Watched(kubectl, pod_driver, job())
    pods = watched.run(1)
    pod_driver.end(pods[1], ExitCode.DONE, last_words(0))
    until(lambda: watched.gangs()[0]["status"].get("succeeded"), "one worker is done")
    patch = json.dumps({"spec": {"runPolicy": {"suspend": True}}})
    kubectl("patch", "tpj", watched.name, "--type=merge", f"--patch={patch}")
    watched.phase("Suspended")
    assert watched.attempt(1)["reason"] == "Suspended"
