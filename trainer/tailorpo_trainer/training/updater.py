"""One optimiser step: AdamW on the adapter, with gradients accumulated over micro-batches, clipped and averaged."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tailorpo_trainer.checkpoint import CorruptError, Loaded
from tailorpo_trainer.checkpoint.tensors import flatten, unflatten
from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.distributed.signals import Stop
from tailorpo_trainer.distributed.world import World
from tailorpo_trainer.errors import NotFiniteError, TailorPOError
from tailorpo_trainer.methods import Method
from tailorpo_trainer.rollout.rows import Pairs, Transitions, select
from tailorpo_trainer.spec.job import TrainingSpec
from tailorpo_trainer.training.loss_scaling import LossScaler


@dataclass(frozen=True)
class UpdateFacts:
    """Measurements of one iteration's updates, on the CPU; tensors [n] hold the rows in the order of the updates.

    gradient_norm: before clipping. gradient_zeros: share of exact zeros in the gradient of the adapter's B matrices,
    which has none unless it is too small for the precision, or there is nothing to learn.
    """

    loss: float
    gradient_norm: float
    learning_rate: float
    facts: dict[str, Tensor]
    step: Tensor
    weight: Tensor
    gap: Tensor | None
    gradient_zeros: float = 0.0


class Updater:
    """Makes optimiser steps from rows.

    Attributes:
        updates: number of optimiser steps so far; it determines the learning rate.
        scaler: of losses and gradients in fp16.
        average: moving average of the adapter, where the document asks for one.
    """

    def __init__(self, policy: Policy, method: Method, run: TrainingSpec, world: World | None = None) -> None:
        self.policy, self.method, self.run = policy, method, run
        self.world = world or World(Stop())
        settings = run.optimizer
        self.optimizer = torch.optim.AdamW(
            policy.parameters,
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        )
        self.scaler = LossScaler(policy.device, policy.dtype)
        self.updates = 0
        self.average: dict[str, Tensor] | None = None
        if settings.ema_decay is not None:
            self.average = {name: value.detach().clone() for name, value in policy.adapter().items()}

    def iterate(self, rows: Pairs | Transitions, text: Tensor) -> UpdateFacts:
        """All updates of one iteration; each update has the same share of the rows of every denoising step.

        Which samples an update is made of does not depend on the number of processes.

        Args:
            rows: of this process' samples, step-major; each process has equally many.
            text: embeddings of each sample's prompt [samples, tokens, width].
        Raises:
            NotFiniteError: before the weights are changed by a value that is not finite.
            StopRequested, StalledError: only before the first update, while nothing is changed.
        """
        count = self.run.training.updates_per_iteration
        total = len(rows) * self.world.size
        number = self._number(rows)
        weight = rows.weight * self._step_weight(rows.step)
        rows = replace(rows, weight=weight)
        order: list[Tensor] = []
        collected: list[dict[str, Tensor]] = []
        losses, norms, zeros = [], [], []
        for update in range(count):
            # Between two updates the state cannot be saved: to stop there would lose all since the last checkpoint.
            with self.world.defer_stop(update > 0):
                chosen = (number % count == update).nonzero().flatten()
                share = len(range(update, total, count))
                loss, norm, zero, facts = self._compute_gradient(select(rows, chosen), text, share)
                self._step()
                losses.append(loss)
                norms.append(norm)
                zeros.append(zero)
                if len(chosen):
                    order.append(chosen)
                    collected.append(facts)
        self.method.end_iteration()
        with self.world.defer_stop():
            return self._facts(rows, torch.cat(order), collected, losses, norms, zeros)

    def _number(self, rows: Any) -> Tensor:
        """The number that each row would have if one process held the samples of all processes."""
        sample: Tensor = rows.sample
        samples = int(sample.max()) + 1
        steps = torch.arange(len(rows), device=sample.device) // samples
        return (steps * self.world.size + self.world.rank) * samples + sample

    def _facts(
        self,
        rows: Any,
        order: Tensor,
        collected: list[dict[str, Tensor]],
        losses: list[float],
        norms: list[float],
        zeros: list[float],
    ) -> UpdateFacts:
        values = {name: torch.cat([facts[name] for facts in collected]).double() for name in collected[0]}
        columns = values | {"step": rows.step[order].double(), "weight": rows.weight[order].double()}
        if isinstance(rows, Pairs):
            columns["gap"] = rows.gap[order].double()
        gathered = self.world.gather(torch.stack(list(columns.values()), dim=1).cpu())
        columns = dict(zip(columns, gathered.unbind(1), strict=True))
        return UpdateFacts(
            loss=sum(losses) / len(losses),
            gradient_norm=sum(norms) / len(norms),
            learning_rate=self.learning_rate(self.updates - 1),
            facts={name: columns[name].float() for name in values},
            step=columns["step"].long(),
            weight=columns["weight"].float(),
            gap=columns["gap"].float() if "gap" in columns else None,
            gradient_zeros=sum(zeros) / len(zeros),
        )

    def _compute_gradient(
        self, rows: Any, text: Tensor, total_rows: int
    ) -> tuple[float, float, float, dict[str, Tensor]]:
        """Leave the gradient of the mean loss over the `total_rows` rows of all processes in the parameters, clipped.

        Returns the loss, the gradient's norm and share of zeros (see `UpdateFacts`), and the facts of `rows`, which are
        this process' rows. Raises `NotFiniteError`, with no gradient left.
        """
        while True:
            loss, facts = self._accumulate(rows, text, total_rows)
            self.scaler.unscale(self.optimizer)
            zeros = self._gradient_zeros()
            norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters, self.run.optimizer.max_grad_norm)
            norms: list[float] = torch.stack([norm, zeros.to(norm)]).tolist()  # one wait for the device
            if math.isfinite(loss) and math.isfinite(norms[0]):
                return loss, norms[0], norms[1], facts
            self.optimizer.zero_grad(set_to_none=True)
            if not math.isfinite(loss) or not self.scaler.lower():
                raise NotFiniteError(
                    f"the loss is {loss} and its gradient's norm {norms[0]}: nothing was changed by this update; "
                    "lower spec.optimizer.learningRate, or use spec.training.precision fp32"
                )
            if isinstance(rows, Pairs):
                rows = replace(rows, prediction=None, kept=None)  # the backward pass has freed their graph

    def _gradient_zeros(self) -> Tensor:
        # Without A, whose gradient is 0 in the first update, since B is.
        weights = [value for name, value in self.policy.adapter().items() if "lora_A" not in name]
        gradients = torch.cat([_gradient(value).flatten() for value in weights])
        return (gradients == 0).float().mean()

    def _accumulate(self, rows: Any, text: Tensor, total_rows: int) -> tuple[float, dict[str, Tensor]]:
        """Add the scaled gradient of the mean loss over the `total_rows` rows of all processes.

        Returns that loss, not scaled, and the facts of `rows`, which are this process' rows.
        """
        losses, facts = [], []
        size = self.policy.batch_sizes.training
        for start in range(0, len(rows), size):
            self.world.check()
            batch = select(rows, slice(start, start + size))
            result = self.method.loss(self.policy, batch, text[batch.sample])
            loss = (result.losses * batch.weight).sum() / total_rows
            self.scaler.scale(loss).backward()
            losses.append(loss.detach())
            facts.append(result.metrics)
        self.world.sum([_gradient(parameter) for parameter in self.policy.parameters])
        total = torch.stack(losses).cpu().double().sum() if losses else torch.zeros((), dtype=torch.float64)
        self.world.sum([total])
        return float(total), {name: torch.cat([fact[name] for fact in facts]) for name in (facts[0] if facts else ())}

    def _step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.updates)
        self.scaler.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        if self.average is not None:
            decay = self.run.optimizer.ema_decay or 0.0
            for name, value in self.policy.adapter().items():
                self.average[name].lerp_(value.detach(), 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the adapter's weights are their moving average, where one is kept."""
        if self.average is None:
            yield
            return
        current = {name: value.detach().clone() for name, value in self.policy.adapter().items()}
        self._set_adapter(self.average)
        try:
            yield
        finally:
            self._set_adapter(current)

    @torch.no_grad()
    def _set_adapter(self, weights: dict[str, Tensor]) -> None:
        for name, value in self.policy.adapter().items():
            value.copy_(weights[name])

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Everything that the next update depends on: tensors by group, and JSON values."""
        tensors, settings = flatten(self.optimizer.state_dict())
        groups = {"adapter": self.policy.adapter(), "optimizer": tensors}
        if self.average is not None:
            groups["ema"] = self.average
        if of_method := self.method.state():
            groups["method"] = of_method
        state = {"updates": self.updates, "optimizer": settings}
        return groups, state | ({"scaler": scaler} if (scaler := self.scaler.state()) else {})

    def load(self, saved: Loaded) -> None:
        """Restore the result of `state`. Raises `CorruptError` if the checkpoint is not of this adapter's weights."""
        groups = ("adapter",) if self.average is None else ("adapter", "ema")
        weights = {group: saved.tensors(group) for group in groups}
        for group, tensors in weights.items():
            _check_weights(tensors, self.policy.adapter(), f"{saved.uri}{group}")
        totals, updates = saved.state.get("totals"), saved.state.get("updates")
        if not isinstance(updates, int) or updates < 0 or not _all_numbers(totals):
            raise CorruptError(f"{saved.uri}: its state.json has no number of updates, or no totals")
        try:
            # Those of early versions have no such group.
            self.method.load(saved.tensors("method") if "method" in saved.groups else {})
        except ValueError as error:
            raise CorruptError(f"{saved.uri}method: does not fit method {self.run.method.name!r}: {error}") from None
        self._set_adapter(weights["adapter"])
        try:
            self.optimizer.load_state_dict(unflatten(saved.tensors("optimizer"), saved.state["optimizer"]))
            for parameter, moments in self.optimizer.state.items():
                if any(value.dim() and value.shape != parameter.shape for value in moments.values()):
                    raise ValueError("a moment has another shape than its weight")
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            # Whatever torch finds in a state that is not an AdamW's of these weights.
            reason = f"{type(error).__name__}: {error}"[:200]
            raise CorruptError(f"{saved.uri}: its optimizer's state does not fit: {reason}") from None
        try:
            self.scaler.load(saved.state.get("scaler"))
        except ValueError as error:
            raise CorruptError(f"{saved.uri}: its state.json has no scaler's state: {error}") from None
        self.updates = updates
        if self.average is not None:
            self.average = {name: value.to(self.policy.device) for name, value in weights["ema"].items()}

    def learning_rate(self, update: int) -> float:
        """The step size of update number `update`, from 0: a function of that number alone."""
        settings, training = self.run.optimizer, self.run.training
        if update < settings.warmup_updates:
            return settings.learning_rate * (update + 1) / settings.warmup_updates
        total = training.iterations * training.updates_per_iteration
        done = (update - settings.warmup_updates) / max(1, total - settings.warmup_updates)
        match settings.schedule:
            case "linear":
                return settings.learning_rate * (1 - done)
            case "cosine":
                return float(
                    settings.learning_rate * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * done, dtype=torch.float64)))
                )
        return settings.learning_rate

    def _step_weight(self, step: Tensor) -> Tensor | float:
        """sigma / |mean_m| of each row's step, scaled to mean 1 over all rows: no step shall dominate the gradient."""
        if self.run.method.step_weight == "uniform":
            return 1.0
        sampler = self.policy.sampler
        weights = (sampler.sigma / sampler.mean_m.abs())[step.cpu()].to(step.device).float()
        return weights / weights.mean()


def _check_weights(tensors: dict[str, Tensor], own: dict[str, Tensor], where: str) -> None:
    if different := sorted(tensors.keys() ^ own.keys()):
        raise CorruptError(f"{where}: holds other weights than this run's: {different[0]}")
    for name, value in own.items():
        if tensors[name].shape != value.shape or not tensors[name].is_floating_point():
            found = f"{tensors[name].dtype} {list(tensors[name].shape)}"
            raise CorruptError(f"{where}: {name} is {found}, not {value.dtype} {list(value.shape)}")


def _all_numbers(totals: object) -> bool:
    return isinstance(totals, dict) and all(isinstance(value, int | float) for value in totals.values())


def _gradient(parameter: Tensor) -> Tensor:
    """A parameter's gradient; 0 if it does not depend on any row of this process."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def check_first_update(facts: UpdateFacts, latent_size: int, exact: bool) -> None:
    """Check that in its first update a fresh adapter equals the reference: ratio 1, logit 0, loss log 2.

    Args:
        exact: whether the precision is float32; lower precisions round differently in batches of different shape.
    Raises:
        TailorPOError: if it does not, which is a bug.
    """
    worst = float(facts.facts["logit"].abs().max())
    allowed = max(1e-3, 1e-6 * latent_size) if exact else 0.05
    if worst > allowed:
        raise TailorPOError(
            f"before the first update policy and reference must be equal, but a logit is {worst:.2g}: please report it"
        )
