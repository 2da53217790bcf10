"""GPT-X: decoder-only language models with unusual parts, trained through DeepSpeed pipelines.

The command `gptx` is for people; docs/library.md shows the parts in your own models:

    from megatron_gptx.ops.attention.dispatch import attention  # ALiBi, top-k, carried scores
    from megatron_gptx.model.layer_list import build_layer  # whole blocks
    from megatron_gptx.config.load import load  # configurations, without torch
    from megatron_gptx.costs.plan import make_plan  # what they cost, without torch
"""

__version__ = "0.1.0"
