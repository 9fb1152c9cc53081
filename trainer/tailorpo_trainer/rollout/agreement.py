"""How often two ways of scoring agree on which of two candidates is the better one."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """Of the `compared` pairs that neither score ties, the number that both order the same way."""

    agreed: int = 0
    compared: int = 0

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(self.agreed + other.agreed, self.compared + other.compared)

    @property
    def share(self) -> float | None:
        """1: always the same order, 0.5: chance (Kendall's tau is 2 share - 1); None if no pair was compared."""
        return self.agreed / self.compared if self.compared else None


def rank_agreement(one: Tensor, other: Tensor) -> Agreement:
    """Agreement over all pairs within each row of scores [n, k], without the pairs that tie in either of them."""
    first, second = torch.triu_indices(one.shape[1], one.shape[1], offset=1)
    one_order, other_order = ((scores[:, first] - scores[:, second]).sign() for scores in (one, other))
    untied = (one_order != 0) & (other_order != 0)
    return Agreement(int((one_order == other_order)[untied].sum()), int(untied.sum()))
