"""The layer list in one process: for ZeRO-2/3, evaluation and generation."""

from collections.abc import Callable

from torch import Tensor, nn

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.model.head import Target, TiedHead
from megatron_gptx.model.layer_list import build_layers
from megatron_gptx.model.layer_runner import LayerRunner


class GPTXSequential(nn.Module):
    """All layers, one after the other."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        seed: int = 0,
        checkpoint_group: int = 0,
        prepare: Callable[[nn.Module], object] | None = None,
    ) -> None:
        """Build every layer with the weights that any other container would give it.

        Args:
            config: the model.
            seed: seed of weights and dropout.
            checkpoint_group: blocks whose activations are recomputed together; 0 keeps all.
            prepare: called with each layer once it is built, before the next one is.
        """
        super().__init__()
        self.layers = nn.ModuleList(build_layers(config, seed, prepare=prepare))
        self.runner = LayerRunner(
            config, self.layers[:-1], first=0, seed=seed, checkpoint_group=checkpoint_group
        )

    def local_layers(self) -> dict[int, nn.Module]:
        """Return all layers by position; a tied head owns nothing and is left out."""
        return {
            index: layer
            for index, layer in enumerate(self.layers)
            if not isinstance(layer, TiedHead)
        }

    def tied_copies(self) -> dict[tuple[int, str], nn.Parameter]:
        """Return nothing: a tied head uses the embedding's own table."""
        return {}

    def forward(
        self,
        tokens: Tensor,
        labels: Tensor,
        num_tokens: Tensor,
        row_start: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of (b, s) token ids, as `token_loss` defines it."""
        return self._run(tokens, row_start, (labels, num_tokens))

    def logits(self, tokens: Tensor, row_start: Tensor | None = None) -> Tensor:
        """Map token ids (b, s) to logits (b, s, v).

        `row_start` (b, s) int32 is the first token that each one sees; None for the first of all.
        """
        return self._run(tokens, row_start, None)

    def _run(self, tokens: Tensor, row_start: Tensor | None, target: Target | None) -> Tensor:
        x, _ = self.runner.run(tokens, None, row_start, training=self.training)
        return self.layers[-1](x, None, target=target)[0]
