"""How far two ways of scoring agree on what they are used for: which of two candidates is the better one."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """Of so many pairs that both scores tell apart, how many they order the same."""

    agreed: int = 0
    compared: int = 0

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(self.agreed + other.agreed, self.compared + other.compared)

    @property
    def share(self) -> float | None:
        """1: the same order always, 0.5: chance (Kendall's tau is 2 share - 1); None if nothing was compared."""
        return self.agreed / self.compared if self.compared else None


def rank_agreement(one: Tensor, other: Tensor) -> Agreement:
    """Over all pairs within each row of scores [n, k]; pairs that tie in either are left out."""
    first, second = torch.triu_indices(one.shape[1], one.shape[1], offset=1)
    mine, theirs = ((scores[:, first] - scores[:, second]).sign() for scores in (one, other))
    told = (mine != 0) & (theirs != 0)
    return Agreement(int((mine == theirs)[told].sum()), int(told.sum()))
