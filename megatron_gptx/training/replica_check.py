"""Replicas hold the same weights bit by bit, or one of them has gone astray."""

from collections import Counter
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Elements at once: their 64 bits each stay in a processor's cache, and are little on a GPU.
CHUNK = 1 << 18


class ReplicaError(Exception):
    """Replicas differ, which no arithmetic explains: a broken device or memory, or a defect."""


def check_replicas(layers: Mapping[int, nn.Module], group: dist.ProcessGroup | None) -> None:
    """Compare a checksum of every parameter over the replicas; every rank calls this.

    Args:
        layers: this rank's layers by position.
        group: the processes that hold the same layers.

    Raises:
        ReplicaError: they differ; the message names the first parameter and the ranks.
    """
    named = {
        f"layer {index}, {name}": parameter
        for index, layer in layers.items()
        for name, parameter in layer.named_parameters()
    }
    if not named:
        return  # nothing but a tied head, whose table the first stage compares
    own = torch.stack([checksum(parameter) for parameter in named.values()])
    every = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, own, group=group)
    sums = torch.stack(every).tolist()
    for number, name in enumerate(named):
        found = Counter(row[number] for row in sums)
        if len(found) == 1:
            continue
        (usual, times), *_ = found.most_common()
        odd = [i for i, row in enumerate(sums) if times * 2 <= len(sums) or row[number] != usual]
        ranks = [dist.get_process_group_ranks(group)[i] for i in odd]
        differing = sum(len({row[i] for row in sums}) > 1 for i in range(len(named)))
        raise ReplicaError(
            f"replicas hold different weights: {differing} of {len(named)} parameters differ, the "
            f"first is {name}, on {'rank' if len(ranks) == 1 else 'ranks'} "
            f"{', '.join(map(str, ranks))}; a device or its memory may be broken; start again to "
            "go on from the newest checkpoint"
        )


def checksum(parameter: Tensor) -> Tensor:
    """Return a sum of a tensor's bits, weighted by position, an int64 scalar on its device.

    Any one element that differs changes it: its weight is odd, and sums wrap around.
    """
    bits = parameter.detach().contiguous().view(-1)
    bits = bits.view({2: torch.int16, 4: torch.int32}[bits.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    odd = 2 * torch.arange(min(CHUNK, bits.numel()), device=bits.device) + 1
    for start in range(0, bits.numel(), CHUNK):
        part = bits[start : start + CHUNK].long()
        # The weight of an element is 2 * (start + its place) + 1.
        total += (part * odd[: part.numel()]).sum() + 2 * start * part.sum()
    return total
