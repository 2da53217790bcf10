"""Global batch, micro-batch, accumulation: any two make the third."""

from typing import Final, NamedTuple

# The label of a position that does not count; the ignore_index that PyTorch defaults to.
IGNORE: Final = -100


class Batch(NamedTuple):
    """A consistent triple for a number of replicas: global = micro * accumulation * replicas."""

    global_size: int
    micro_size: int
    accumulation_steps: int


def derive_batch(
    global_size: int | None,
    micro_size: int | None,
    accumulation_steps: int | None,
    *,
    replicas: int,
) -> Batch:
    """Return the batch that the given sizes imply.

    Accumulation is 1 where only one size is given.

    Raises:
        ValueError: nothing is given, or the sizes contradict each other; the message names the
            nearest global batch sizes that would work.
    """
    if global_size is None:
        if micro_size is None:
            raise ValueError("give global_batch_size or micro_batch_size")
        accumulation_steps = accumulation_steps or 1
        return Batch(micro_size * accumulation_steps * replicas, micro_size, accumulation_steps)
    if micro_size is None and accumulation_steps is None:
        accumulation_steps = 1
    unit = (micro_size or 1) * (accumulation_steps or 1) * replicas
    fixed = micro_size is not None and accumulation_steps is not None
    if global_size % unit or (fixed and global_size != unit):
        nearest = [unit] if fixed else _neighbours(global_size, unit)
        relation = "is not" if fixed else "is no multiple of"
        raise ValueError(
            f"global_batch_size {global_size} {relation} "
            f"{_product(micro_size, accumulation_steps, replicas)}; "
            f"the nearest valid global_batch_size is {' or '.join(map(str, nearest))}"
        )
    quotient = global_size // unit
    return Batch(
        global_size,
        quotient if micro_size is None else micro_size,
        quotient if accumulation_steps is None else accumulation_steps,
    )


def _neighbours(size: int, unit: int) -> list[int]:
    below = size // unit * unit
    return [below, below + unit] if below else [unit]


def _product(micro_size: int | None, accumulation_steps: int | None, replicas: int) -> str:
    given = {
        "micro_batch_size": micro_size,
        "accumulation_steps": accumulation_steps,
        "data_replicas": replicas,
    }
    return " * ".join(f"{name} {size}" for name, size in given.items() if size is not None)
