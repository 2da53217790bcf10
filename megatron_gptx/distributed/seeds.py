"""Random streams that depend on what they are for, not on which process draws them."""

from hashlib import blake2b


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose, such as `derive_seed(1234, "weights", layer)`.

    Two purposes never share a stream, and none depends on how many numbers another one drew. That
    is what makes initial weights and dropout independent of the pipeline layout.
    """
    text = ":".join(map(str, (seed, *purpose)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
