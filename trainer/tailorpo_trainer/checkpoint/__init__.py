"""Checkpoints as commits: without a valid manifest, a checkpoint does not exist. See `docs/checkpoints.md`.

    run = open_run(open_store(uri), job)              # checks that the storage belongs to the job
    start = None if fresh else run.latest()           # the checkpoint to resume from, or None
    attempt = run.begin(start, at_least=number)       # writes under its own prefix only
    stream = BackgroundWriter(attempt, keep=3, max_failures=3)
    stream.save(step, {"adapter": tensors}, {"samples": 640})   # returns as soon as the tensors are copied
    stream.close()                                              # returns when everything is committed

Nothing here imports torch before tensors are saved or loaded.
"""

from tailorpo_trainer.checkpoint.attempt import Attempt, Snapshot, capture
from tailorpo_trainer.checkpoint.background import BackgroundWriter
from tailorpo_trainer.checkpoint.format import FORMAT_VERSION, CorruptError, Manifest
from tailorpo_trainer.checkpoint.identity import differences, experiment_hash
from tailorpo_trainer.checkpoint.layout import Ref
from tailorpo_trainer.checkpoint.resume import Loaded, checkpoints, latest, load
from tailorpo_trainer.checkpoint.run import Run, open_run
from tailorpo_trainer.checkpoint.storage.base import ExistsError, MissingError, Store
from tailorpo_trainer.checkpoint.storage.from_uri import open_store

__all__ = [
    "FORMAT_VERSION",
    "Attempt",
    "BackgroundWriter",
    "CorruptError",
    "ExistsError",
    "Loaded",
    "Manifest",
    "MissingError",
    "Ref",
    "Run",
    "Snapshot",
    "Store",
    "capture",
    "checkpoints",
    "differences",
    "experiment_hash",
    "latest",
    "load",
    "open_run",
    "open_store",
]
