"""How operations that have more than one implementation are computed."""

from typing import Literal

from pydantic import Field

from megatron_gptx.config.section import Section

Backend = Literal["auto", "fused", "reference"]


class OpsConfig(Section):
    """Implementations of the operations."""

    backend: Backend = Field(
        "auto",
        description="`fused`: kernels that are built for this machine on first use. `reference`: "
        "plain PyTorch. `auto`: the kernels where they can run; where they cannot, "
        "the log says why.",
    )
