"""Write a checkpoint's adapter for diffusers. This reads only the storage; the base model is not needed."""

from pathlib import Path

from tailorpo_trainer import models
from tailorpo_trainer.checkpoint import Loaded, MissingError, Store, checkpoints, latest, load
from tailorpo_trainer.checkpoint.format import RunRecord
from tailorpo_trainer.checkpoint.layout import RUN
from tailorpo_trainer.errors import DataError
from tailorpo_trainer.spec.job import LoRA


def export(store: Store, to: Path, attempt: int | None = None, step: int | None = None) -> Loaded:
    """Write the LoRA of a checkpoint (its moving average, if it has one) into the folder `to`; returns the checkpoint.

    Without `attempt` and `step` it is the checkpoint that a resume would load, otherwise the newest match. Raises
    `DataError` if there is none, or if it is damaged.
    """
    models.silence_libraries()
    found = _choose(store, attempt, step)
    lora = LoRA.model_validate(RunRecord.decode(store.read(RUN), store.uri(RUN)).defines["lora"])
    models.export_adapter(found.tensors("ema" if "ema" in found.groups else "adapter"), lora, to)
    return found


def _choose(store: Store, attempt: int | None, step: int | None) -> Loaded:
    if attempt is None and step is None:
        found = latest(store)
        if found is None:
            raise DataError(f"{store.uri('')}: holds no checkpoint that a run could go on from")
        return found
    fitting = [ref for ref in checkpoints(store) if attempt in (None, ref.attempt) and step in (None, ref.step)]
    wanted = " and ".join(f"{name} {value}" for name, value in (("attempt", attempt), ("step", step)) if value)
    if not fitting:
        raise DataError(f"{store.uri('')}: holds no checkpoint of {wanted}: `tailorpo checkpoints ls` lists them")
    try:
        return load(store, fitting[-1])
    except MissingError as error:
        raise DataError(f"{error}: it was deleted just now") from None
