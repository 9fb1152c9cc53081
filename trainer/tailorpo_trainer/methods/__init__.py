"""The training methods; `build(run.method)` makes the one that a document names."""

from collections.abc import Callable

from tailorpo_trainer.methods.base import Loss, Method, RolloutContext, can_keep_graph
from tailorpo_trainer.methods.d3po import D3PO
from tailorpo_trainer.methods.ddpo import DDPO
from tailorpo_trainer.methods.spo import SPO
from tailorpo_trainer.methods.tailorpo import TailorPO
from tailorpo_trainer.methods.tailorpo_g import TailorPOG
from tailorpo_trainer.spec import job

METHODS: dict[str, Callable[[job.Method], Method]] = {
    "tailorpo": TailorPO,
    "tailorpo-g": TailorPOG,
    "spo": SPO,
    "d3po": D3PO,
    "ddpo": DDPO,
}


def build(parameters: job.Method) -> Method:
    """The method that a document names; parameters: resolved by `rules.resolve`, so that no default is missing."""
    return METHODS[parameters.name](parameters)


__all__ = ["METHODS", "SPO", "Loss", "Method", "RolloutContext", "build", "can_keep_graph"]
