"""One pipeline stage without its neighbours, in as much memory as between them."""

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn
from training_runs import Step

from megatron_gptx.config.schema import Config
from megatron_gptx.costs.memory import boundary_bytes
from megatron_gptx.costs.plan import StagePlan
from megatron_gptx.distributed.process import Process
from megatron_gptx.model.backend import DTYPES
from megatron_gptx.model.layer_list import build_layer
from megatron_gptx.model.layer_runner import LayerRunner
from megatron_gptx.model.pipeline import pack, unpack
from megatron_gptx.training.build import initialize
from megatron_gptx.training.engine import StepResult, set_learning_rate


class Stage(nn.Module):
    """The layers of a stage, from what the stage before sends to a loss."""

    def __init__(self, config: Config, plan: StagePlan) -> None:
        super().__init__()
        model, seed = config.model, config.training.seed
        self.hidden_size, self.num_heads = model.hidden_size, model.num_heads
        self.is_first = plan.first_layer == 0
        self.is_last = plan.stop_layer == model.num_pipeline_layers
        self.layers = nn.ModuleList(
            build_layer(model, index, seed) for index in range(plan.first_layer, plan.stop_layer)
        )
        self.runner = LayerRunner(
            model,
            self.layers[:-1] if self.is_last else self.layers,
            first=plan.first_layer,
            seed=seed,
            checkpoint_group=config.training.checkpoint_activations,
        )

    def forward(self, inputs: Tensor, target: Any) -> tuple[Tensor, Tensor | None]:
        """Return the loss of the target (labels, how many); or outputs * target, and outputs."""
        x, prev_scores = inputs, None
        if not self.is_first:
            dtype = next(self.parameters()).dtype
            x, prev_scores = unpack(inputs, self.hidden_size, self.num_heads, dtype)
        x, scores = self.runner.run(x, prev_scores, training=self.training)
        if self.is_last:
            return self.layers[-1](x, None, target=target)[0], None
        outputs = x if scores is None else pack(x, scores)
        return (outputs.float() * target).sum(), outputs


class StageAlone:
    """DeepSpeed's engine of one stage, fed as 1F1B feeds it.

    Random numbers stand for the activations that the stage before sends, and fixed ones for the
    gradients that the stage behind sends back.
    """

    def __init__(self, config: Config, plan: StagePlan, process: Process) -> None:
        self.config, self.plan, self.device = config, plan, process.device
        self.stage = Stage(config, plan)
        self.deepspeed = initialize(config, self.stage, process, say=print)
        if not self.stage.is_last:
            # About as large as those of a mean over the tokens, so that fp16 can hold them scaled.
            num_tokens = config.batch.micro_size * config.model.seq_length
            self.gradient = self._crossing(plan.stop_layer).float() / num_tokens

    def train_step(self, batch: Step, *, step: int, lr: float) -> StepResult:
        """Update the weights once."""
        set_learning_rate(self.deepspeed.optimizer, lr)
        self.stage.runner.begin_step(step, 0)
        # With what each sends, which DeepSpeed keeps as long.
        waiting: deque[tuple[Tensor, Tensor | None]] = deque()
        total = torch.zeros((), device=self.device)
        for micro_batch in batch:
            # The deque alone decides how long a graph lives.
            waiting.append(self.deepspeed(*self._feed(micro_batch.tokens, micro_batch.labels)))
            total += waiting[-1][0].detach()
            if len(waiting) == self.plan.micro_batches_in_flight:
                self._learn(*waiting.popleft())
        while waiting:
            self._learn(*waiting.popleft())
        norm = self.deepspeed.get_global_grad_norm()
        mean = total.item() / len(batch)
        return StepResult(mean, float(norm), self.deepspeed.was_step_applied())

    def _learn(self, loss: Tensor, outputs: Tensor | None) -> None:
        self.deepspeed.backward(loss)
        self.deepspeed.step()

    def _feed(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Any]:
        """Return the inputs and the target of a micro-batch."""
        if self.stage.is_first:
            inputs = tokens.to(self.device)
        else:
            inputs = self._crossing(self.plan.first_layer).requires_grad_()
        if not self.stage.is_last:
            return inputs, self.gradient
        num_labels = torch.tensor(float(labels.numel()), device=self.device)
        return inputs, (labels.to(self.device), num_labels)

    def _crossing(self, edge: int) -> Tensor:
        """Return random numbers in the shape and type of what crosses into layer `edge`."""
        model, rows = self.config.model, self.config.batch.micro_size
        has_scores = model.attention.residual_scores and 1 < edge <= model.num_layers
        width = model.hidden_size + has_scores * model.num_heads * model.seq_length
        dtype = torch.float32 if has_scores else DTYPES[self.config.precision]
        numbers = torch.randn(rows, model.seq_length, width, dtype=dtype, device=self.device)
        assert numbers.nbytes == boundary_bytes(self.config, edge), "stages exchange something else"
        return numbers
