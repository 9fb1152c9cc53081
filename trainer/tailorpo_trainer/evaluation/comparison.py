"""Two measurements on the same noise, and the confidence intervals of their difference."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tailorpo_trainer.evaluation.measurement import Measurement
from tailorpo_trainer.evaluation.recognition import Recognition
from tailorpo_trainer.stats import t_quantile, wilson, with_interval

Z95 = 1.959964


@dataclass(frozen=True)
class Comparison:
    """Measurements before and after training, on the same noise. Intervals are Student's, 95 %, over the pictures.

    Attributes:
        iteration: after which the policy was measured. images: number of pictures of each measurement.
        recognised: the judge's results, before and after; None if no prompt names an animal, or for another model.
    """

    iteration: int
    images: int
    before: Measurement
    after: Measurement
    recognised: tuple[Recognition, Recognition] | None = None

    def rows(self) -> list[dict[str, Any]]:
        """For each score: the means before and after, their paired difference, and half the widths of the intervals."""
        scores = {"reward": (self.before.reward, self.after.reward)}
        terms = self.before.term_scores
        scores |= {name: (terms[name], self.after.term_scores[name]) for name in terms}
        if len(terms) == 1 and torch.equal(self.before.reward, next(iter(terms.values()))):
            del scores["reward"]  # the sum of one reward of weight 1 is that reward
        return [
            {
                "score": name,
                "before": float(before.double().mean()),
                "before_interval": _interval(before),
                "after": float(after.double().mean()),
                "after_interval": _interval(after),
                "difference": float((after.double() - before.double()).mean()),
                "difference_interval": _interval(after.double() - before.double()),
            }
            for name, (before, after) in scores.items()
        ]

    def as_dict(self) -> dict[str, Any]:
        """The comparison as JSON values; a number that is not defined is NaN or None."""
        found = {
            "iteration": self.iteration,
            "images": self.images,
            "scores": self.rows(),
            **self._diversities(),
        }
        if self.recognised is not None:
            before, after = self.recognised
            found["recognised"] = {
                "before": _share(before),
                "after": _share(after),
                "images": after.images,
                "images_left_out": after.left_out,
            }
        return found

    def table(self) -> list[list[str]]:
        """Text cells for people: name, before, after, paired difference, with their intervals where there are any."""
        rows = [
            [
                row["score"],
                with_interval(row["before"], row["before_interval"]),
                with_interval(row["after"], row["after_interval"]),
                with_interval(row["difference"], row["difference_interval"], "+"),
            ]
            for row in self.rows()
        ]
        for name, found in self._diversities().items():
            before, after = found["before"], found["after"]
            if before is not None and after is not None:
                values = [(before, "before_interval", ""), (after, "after_interval", "")]
                values.append((after - before, "difference_interval", "+"))
                cells = [with_interval(value, _known(found[key]), sign) for value, key, sign in values]
                rows.append([name.replace("_", " "), *cells])
        if self.recognised is not None:
            shares = [_share(found) for found in self.recognised]
            cells = [f"{100 * s['share']:.1f} % ({100 * s['low']:.1f} to {100 * s['high']:.1f})" for s in shares]
            rows.append(["named right", *cells, f"{100 * (shares[1]['share'] - shares[0]['share']):+.1f} points"])
        return rows

    def _diversities(self) -> dict[str, dict[str, float | None]]:
        """Means and half the widths of their intervals; those of the difference are not paired."""
        found: dict[str, dict[str, float | None]] = {}
        for name in ("diversity", "feature_diversity"):
            before, after = (getattr(measured, name) for measured in (self.before, self.after))
            errors = [getattr(measured, f"{name}_error") for measured in (self.before, self.after)]
            widths = [None if error is None else Z95 * error for error in errors]
            both = None if None in errors else Z95 * math.hypot(*errors)
            if name == "diversity" or after is not None:
                found[name] = {"before": before, "after": after}
                found[name] |= {"before_interval": widths[0], "after_interval": widths[1], "difference_interval": both}
        return found

    def notes(self) -> list[str]:
        """How to read the table."""
        notes = [
            "± is the 95 % interval of the mean; differences are picture by picture, on the same noise, "
            "and those of diversities are of their means"
        ]
        if self.recognised is not None:
            after = self.recognised[1]
            left_out = f"; {after.left_out} of other prompts left out" if after.left_out else ""
            notes.append(
                f"named right: by the shipped model's judge, which is never a reward, of {after.images} pictures whose "
                f"prompt names one of its animals{left_out}; in brackets the 95 % interval"
            )
        return notes


def _interval(values: Tensor) -> float:
    """Half the width of the 95 % interval of the mean; NaN for a single value."""
    count = len(values)
    return t_quantile(count - 1) * float(values.double().std()) / count**0.5 if count > 1 else math.nan


def _known(half: float | None) -> float:
    return math.nan if half is None else half


def _share(found: Recognition) -> dict[str, float]:
    low, high = wilson(found.right, found.images)
    return {"share": found.right / found.images, "low": low, "high": high}
