"""SIGKILL in the middle of a multipart upload: nothing of it counts, and the next attempt clears it away."""

import os
import signal
import subprocess
import sys
from typing import Any

import torch

from tailorpo_trainer import checkpoint
from tailorpo_trainer.checkpoint import Ref
from tailorpo_trainer.document import parse
from tests.faults import Fault, Proxy, nth

DOCUMENT = {
    "apiVersion": "tailorpo.dev/v1alpha1",
    "kind": "TailorPOJob",
    "metadata": {"name": "victim"},
    "spec": {"prompts": {"builtin": "animals"}, "rewards": [{"name": "r"}], "method": {"name": "tailorpo"}},
}
VICTIM = f"""
import sys, torch
from tailorpo_trainer import checkpoint
from tailorpo_trainer.document import parse

run = checkpoint.open_run(checkpoint.open_store(sys.argv[1]), parse({DOCUMENT!r}))
stream = checkpoint.BackgroundWriter(run.begin(run.latest()), keep=3, max_failures=3)
for step in (10, 20):
    stream.save(step, {{"adapter": {{"up": torch.full((5 << 20,), step, dtype=torch.float32)}}}}, {{"step": step}})
stream.close()
"""


def test_an_upload_that_was_killed(s3_server: Any, s3_bucket: str, faults: Proxy) -> None:
    uri = f"s3://{s3_bucket}/run"
    # Each state is 20 MB, two parts: the fourth part belongs to the second checkpoint.
    faults.rule = nth(4, Fault(then=lambda: os.kill(victim.pid, signal.SIGKILL), reset="before"), within="partNumber")
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, uri], env=dict(os.environ))
    assert victim.wait(100) == -signal.SIGKILL
    faults.rule = lambda *_: None
    client = s3_server.client()
    (stale,) = client.list_multipart_uploads(Bucket=s3_bucket)["Uploads"]
    assert stale["Key"] == f"run/{Ref(1, 20).prefix}adapter.safetensors"

    run = checkpoint.open_run(checkpoint.open_store(uri), parse(DOCUMENT))
    found = run.latest()
    assert found is not None
    assert (found.manifest.ref, found.state) == (Ref(1, 10), {"step": 10})
    assert torch.equal(found.tensors("adapter")["up"], torch.full((5 << 20,), 10.0))
    stream = checkpoint.BackgroundWriter(run.begin(found), keep=3, max_failures=3)
    stream.save(20, {"adapter": {"up": torch.zeros(3)}}, {})
    stream.close()
    assert "Uploads" not in client.list_multipart_uploads(Bucket=s3_bucket)
    assert checkpoint.checkpoints(run.store) == [Ref(1, 10), Ref(2, 20)]
