"""Metrics from anywhere: what any rank records in a step becomes part of rank 0's row."""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

# `norm` is for the parts of a vector: the root of the sum of their squares.
Reduce = Literal["mean", "sum", "max", "norm"]

# What a rank has to tell the others at the end of a step.
NOTHING, VALUES, NEW_NAMES = range(3)


class Recorder:
    """Takes values by name on any rank, and joins those of all ranks at the end of a step.

    Ranks may record different names, in different steps, or nothing. The largest `news` of all
    ranks says what they exchange: nothing, one small tensor, or new names and then the tensor.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin with no names; `device` is where ranks exchange tensors."""
        self.device = device
        self.step = 0
        self.own: dict[str, Reduce] = {}
        self.agreed: dict[str, Reduce] = {}
        self.values: dict[str, list[Tensor]] = {}

    def begin(self, step: int) -> None:
        """Name the step that the next values belong to."""
        self.step = step

    def due(self, every: int) -> bool:
        """Return whether this step is one of those that a value is kept in."""
        return self.step % every == 0

    def record(
        self, name: str, value: Tensor | float, *, reduce: Reduce = "mean", every: int = 1
    ) -> None:
        """Keep a value for this step's row; several of one name are joined.

        Args:
            name: its key in the row.
            value: a number, or a tensor of one element, which is not waited for.
            reduce: how values of one name are joined, within a rank and over those that have one.
            every: steps from one row that has the value to the next one.
        """
        if not self.due(every):
            return
        before = self.own.setdefault(name, reduce)
        assert before == reduce, f"{name} is reduced by {before}, not by {reduce}"
        if isinstance(value, Tensor):
            value = value.detach().reshape(())
            kept = value.to(self.device, torch.float64, copy=True)  # a weight is about to change
        else:
            kept = torch.tensor(value, dtype=torch.float64, device=self.device)
        self.values.setdefault(name, []).append(kept)

    @property
    def news(self) -> int:
        """What this rank has to exchange; a larger number includes the smaller ones."""
        if not self.values:
            return NOTHING
        return VALUES if self.values.keys() <= self.agreed.keys() else NEW_NAMES

    def collect(self, news: int) -> dict[str, float]:
        """Return what all ranks have recorded since the last call, the same on each of them.

        Args:
            news: the largest of all ranks, so that all of them exchange the same.
        """
        if news == NOTHING:
            return {}
        if news == NEW_NAMES:
            self._agree_on_names()
        mine = torch.stack([self._column(name) for name in self.agreed], dim=1)
        self.values = {}
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(every, mine)
        totals, counts = torch.stack(every, dim=1).cpu()
        row = {}
        for place, (name, reduce) in enumerate(self.agreed.items()):
            given = counts[:, place] > 0
            if given.any():
                total = _join(totals[given, place], reduce)
                if reduce == "mean":
                    total /= counts[:, place].sum()
                row[name] = (total.sqrt() if reduce == "norm" else total).item()
        return row

    def _agree_on_names(self) -> None:
        """Give every name that any rank has recorded a place in the tensor, on all ranks alike."""
        everyone: list[dict[str, Reduce]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, self.own)
        for names in everyone:
            for name, reduce in names.items():
                before = self.agreed.setdefault(name, reduce)
                assert before == reduce, f"{name} is reduced by {before} and by {reduce}"

    def _column(self, name: str) -> Tensor:
        """Return the joined values of a name on this rank, and how many they are."""
        values = self.values.get(name, [])
        if not values:
            return torch.zeros(2, dtype=torch.float64, device=self.device)
        reduce, stacked = self.agreed[name], torch.stack(values)
        total = _join(stacked.square() if reduce == "norm" else stacked, reduce)
        return torch.stack([total, torch.full_like(total, len(values))])


def _join(values: Tensor, reduce: Reduce) -> Tensor:
    """Return the largest of some values, or their sum, a scalar."""
    return values.amax() if reduce == "max" else values.sum()
