"""How operations that have more than one implementation are computed."""

from typing import Literal

from pydantic import Field

from megatron_gptx.config.section import Section

Backend = Literal["auto", "fused", "reference"]


class OpsConfig(Section):
    """Implementations of the operations."""

    backend: Backend = Field(
        "auto",
        description="`fused` kernels, built for this machine the first time, or the `reference` in "
        "plain PyTorch; `auto` takes the fused ones where they run, and logs why not where they do "
        "not.",
    )
