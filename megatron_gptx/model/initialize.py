"""Initial weights, by the role each parameter plays."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import nn

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.model.projection import HeadProjection, QKVProjection, StreamProjection
from megatron_gptx.model.residual import ReZero

Role = Literal["embedding", "weight", "qkv_weight", "stream_weight", "head", "bias", "norm", "gate"]


class RoledParameter(NamedTuple):
    """A parameter and what it is for."""

    name: str
    parameter: nn.Parameter
    role: Role


def parameter_roles(module: nn.Module) -> Iterator[RoledParameter]:
    """Yield every parameter once, in order, with its role.

    Roles: `embedding` tables; `weight` matrices of blocks, `qkv_weight` where three lie in one
    parameter, `stream_weight` where the output joins the residual stream; the output `head`; `bias`
    of projections and norms; `norm` scales; ReZero's `gate`.

    Raises:
        TypeError: a module holds parameters nobody gave a role.
    """
    seen = set()
    for path, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                full_name = f"{path}.{name}" if path else name
                yield RoledParameter(full_name, parameter, _role(owner, name))


def _role(owner: nn.Module, name: str) -> Role:
    if name == "bias":
        return "bias"
    if isinstance(owner, nn.Embedding):
        return "embedding"
    if isinstance(owner, nn.LayerNorm):
        return "norm"
    if isinstance(owner, StreamProjection):
        return "stream_weight"
    if isinstance(owner, QKVProjection):
        return "qkv_weight"
    if isinstance(owner, HeadProjection):
        return "head"
    if isinstance(owner, nn.Linear):
        return "weight"
    if isinstance(owner, ReZero):
        return "gate"
    raise TypeError(f"{type(owner).__name__}.{name} has no role: add it to model/initialize.py")


def initialize(module: nn.Module, config: ModelConfig, generator: torch.Generator) -> None:
    """Overwrite every parameter of a layer with its initial value, drawn from `generator`.

    Matrices and tables are normal with init_std. Without ReZero's gates the stream's variance would
    grow with every branch, so projections into it shrink by the root of their number.

    Source of that factor: Radford et al. 2019, "Language Models are Unsupervised Multitask
    Learners", section 2.3.
    """
    branches = config.num_layers * (3 if config.macaron else 2)
    shrink = 1.0 if config.residual == "rezero" else branches**-0.5
    with torch.no_grad():
        for _, parameter, role in parameter_roles(module):
            if role in ("bias", "gate"):
                parameter.zero_()
            elif role == "norm":
                parameter.fill_(1.0)
            else:
                std = config.init_std * (shrink if role == "stream_weight" else 1.0)
                parameter.normal_(0.0, std, generator=generator)
