"""What one process of a stage keeps in memory, in bytes.

Three things come on top that no configuration decides: the device's own context, the allocator's
fragmentation, and DeepSpeed's communication buckets (`zero_optimization.reduce_bucket_size`
elements where gradients are reduced).
"""

from typing import NamedTuple

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.config.optimizers import OPTIMIZERS
from megatron_gptx.config.schema import Config
from megatron_gptx.config.training import Precision
from megatron_gptx.costs.parameters import (
    block_matrices,
    held_parameters,
    layer_parameters,
    matrix_parameters,
)

FLOAT = 4  # bytes of float32: scores, master weights, moments


class StateMemory(NamedTuple):
    """Bytes that live through the whole run, on the device unless said otherwise.

    `step` lives only while the optimizer steps, when no activations do. `host` is what offloading
    moved to the memory of the machine.
    """

    weights: int
    gradients: int
    optimizer: int
    step: int
    host: int


class ActivationMemory(NamedTuple):
    """Bytes between the forward and the backward pass of one stage.

    `kept` is what one micro-batch leaves for its backward pass, `in_flight` how many micro-batches
    wait for theirs at once, and `working` what the backward pass of the greediest piece of the
    stage adds for its own duration.
    """

    kept: int
    in_flight: int
    working: int

    @property
    def total(self) -> int:
        """The largest sum reached during a step."""
        return self.in_flight * self.kept + self.working


def compute_bytes(precision: Precision) -> int:
    """Return the bytes of one weight or activation."""
    return FLOAT if precision == "fp32" else 2


def in_flight(config: Config, stage: int) -> int:
    """Return how many micro-batches stage `stage` (from 0) holds at once under 1F1B.

    A stage runs ahead of its first gradient by its distance to the last stage: DeepSpeed 0.19.8,
    pipe/schedule.py, TrainSchedule.num_pipe_buffers.
    """
    return min(config.parallel.pipeline_stages - stage, config.batch.accumulation_steps)


def effective_zero_stage(config: Config) -> int:
    """Return the ZeRO stage that runs: master weights of 16-bit training need stage 1."""
    return max(config.parallel.zero_stage, 0 if config.precision == "fp32" else 1)


def state_memory(config: Config, first: int, stop: int) -> StateMemory:
    """Return the bytes of weights, gradients and optimizer state for the layers [first, stop).

    Source: what DeepSpeed 0.19.8 allocates in runtime/bf16_optimizer.py,
    runtime/zero/stage_1_and_2.py and runtime/zero/stage3.py; alignment padding left out. ZeRO
    keeps a master copy beside the weights in fp32 too.
    """
    parallel, precision = config.parallel, config.precision
    number = held_parameters(config.model, first, stop)
    zero_stage = effective_zero_stage(config)
    part = -(-number // (parallel.data_replicas or 1))
    if zero_stage == 0:
        moments, updates = _moments(config, first, stop), _updates(config, first, stop)
        return StateMemory(FLOAT * number, FLOAT * number, moments, updates, host=0)
    # Of masters and moments. An optimizer that needs whole matrices runs without ZeRO.
    facts = OPTIMIZERS[config.optimizer.name]
    kept, updates = (1 + len(facts.moments)) * FLOAT * part, facts.num_updates * FLOAT * part
    if zero_stage == 1:
        weights, gradients, step = _stage_1(number, part, precision)
    elif zero_stage == 2:
        accumulates = config.batch.accumulation_steps > 1
        weights, gradients, step = _stage_2(number, part, precision, accumulates=accumulates)
    else:
        largest = max(layer_parameters(config.model)[first:stop])
        weights, gradients, step = _stage_3(part, largest, precision)
    state = StateMemory(weights, gradients, kept, step + updates, host=0)
    return _offloaded(state, part, config)


def _moments(config: Config, first: int, stop: int) -> int:
    """Return the bytes of whole moments for the layers [first, stop)."""
    facts = OPTIMIZERS[config.optimizer.name]
    matrices = 0
    if facts.matrix_moments is not None:
        matrices = matrix_parameters(config.model, first, stop)
    rest = held_parameters(config.model, first, stop) - matrices
    return FLOAT * (len(facts.moments) * rest + len(facts.matrix_moments or ()) * matrices)


def _updates(config: Config, first: int, stop: int) -> int:
    """Return the bytes that a step on whole parameters holds for its own duration."""
    facts = OPTIMIZERS[config.optimizer.name]
    if facts.matrix_moments is None:
        return facts.num_updates * FLOAT * held_parameters(config.model, first, stop)
    if not matrix_parameters(config.model, first, stop):
        return 0
    # Of training/muon.py: the update of a parameter, then of one matrix the iterate before and
    # after, the product with its own transpose, and a polynomial of that.
    return FLOAT * max(
        matrix.size + 2 * matrix.rows * matrix.columns + 2 * min(matrix.rows, matrix.columns) ** 2
        for matrix in block_matrices(config.model)
    )


def _stage_1(number: int, part: int, precision: Precision) -> tuple[int, int, int]:
    """Return stage 1's bytes of weights, gradients and step."""
    width = compute_bytes(precision)
    if precision == "bf16":
        # BF16_Optimizer adds every bf16 gradient to an fp32 one, at once, and partitions neither.
        gradients, step = FLOAT * number, 0
    else:
        gradients, step = width * number, _flattened_gradients(part, precision)
    return width * number, gradients, step


def _stage_2(
    number: int, part: int, precision: Precision, *, accumulates: bool
) -> tuple[int, int, int]:
    """Return stage 2's bytes of weights, gradients and step."""
    width = compute_bytes(precision)
    if precision == "bf16":
        gradients, step = FLOAT * part, 0
    else:
        # The sum so far, and the partition of the micro-batch that is about to be added to it.
        gradients = (2 if accumulates else 1) * width * part
        step = _flattened_gradients(part, precision)
    return width * number, gradients, step


def _stage_3(part: int, largest_layer: int, precision: Precision) -> tuple[int, int, int]:
    """Return stage 3's bytes: one layer's weights are gathered at a time, at the least."""
    width = compute_bytes(precision)
    gradients = (width if precision == "fp16" else FLOAT) * part
    step = _flattened_gradients(part, precision)
    return width * (part + largest_layer), gradients, step


def _flattened_gradients(part: int, precision: Precision) -> int:
    """Return the copy of a partition's gradients, and its fp32 version, made for the step."""
    return FLOAT * part + (compute_bytes(precision) * part if precision == "fp16" else 0)


def _offloaded(state: StateMemory, part: int, config: Config) -> StateMemory:
    """Return `state` with the optimizer's part, or all of it, on the host."""
    offload, zero_stage = config.parallel.offload, config.parallel.zero_stage
    width = compute_bytes(config.precision)
    if offload == "none":
        return state
    # Master weights, moments and updates, and the fp32 gradients that they are updated from.
    updates = OPTIMIZERS[config.optimizer.name].num_updates * FLOAT * part
    host = state.optimizer + updates + FLOAT * part
    if zero_stage == 2:
        # A staging buffer for new weights, and 16-bit sums of gradients between micro-batches.
        host += width * part * (2 if config.batch.accumulation_steps > 1 else 1)
    else:
        host += state.gradients
    weights = state.weights
    if offload == "all":
        host, weights = host + width * part, weights - width * part
    return StateMemory(weights, gradients=0, optimizer=0, step=0, host=host)


def activation_memory(config: Config, first: int, stop: int, stage: int) -> ActivationMemory:
    """Return a GPU's bytes of activations at stage `stage`, which has the layers [first, stop).

    Counts what the layers save for their backward pass, what crosses the stage's boundaries, and
    the (b, h, s, s) tensors of the moment: scores and their gradients. With
    `checkpoint_activations` a group of blocks keeps only its input, scores included, and one group
    at a time keeps the rest while it is recomputed. Dropout masks are those of a GPU.
    """
    model, rows = config.model, config.batch.micro_size
    width = compute_bytes(config.precision)
    num_layers = model.num_pipeline_layers
    stream = _stream(model, rows, width)
    crossing = sum(boundary_bytes(config, edge) for edge in (first, stop) if 0 < edge < num_layers)
    kept = crossing
    working = [0]
    if stop == num_layers:
        kept += _end_kept(model, rows, width)
        working.append(_end_working(config))
    blocks = range(max(first, 1), min(stop, model.num_layers + 1))
    if blocks:
        block, group = _block_kept(model, rows, width), config.training.checkpoint_activations
        working.append(_block_working(model, rows, width) + min(group, len(blocks)) * block)
        if group:
            kept += sum(stream + prev_scores_bytes(config, at) for at in blocks[::group])
        else:
            kept += len(blocks) * block
    # A gradient as large as what crosses is received, and another sent.
    return ActivationMemory(kept, in_flight(config, stage), max(working) + crossing)


def boundary_bytes(config: Config, edge: int) -> int:
    """Return the bytes that a micro-batch carries into layer `edge`; its gradient is as large.

    Where one block hands its scores to another, activations and scores cross as one tensor in the
    scores' type, float32: model/pipeline.py, pack.
    """
    model, rows = config.model, config.batch.micro_size
    scores = prev_scores_bytes(config, edge)
    return _stream(model, rows, FLOAT if scores else compute_bytes(config.precision)) + scores


def prev_scores_bytes(config: Config, layer: int) -> int:
    """Return the bytes of scores that enter `layer`: none into the first block, none after them."""
    model = config.model
    receives = model.attention.residual_scores and 1 < layer <= model.num_layers
    return _scores(model, config.batch.micro_size) if receives else 0


def _stream(model: ModelConfig, rows: int, width: int) -> int:
    return rows * model.seq_length * model.hidden_size * width


def _scores(model: ModelConfig, rows: int) -> int:
    return rows * model.num_heads * model.seq_length**2 * FLOAT


def _block_kept(model: ModelConfig, rows: int, width: int) -> int:
    """Return what autograd saves of one block for one micro-batch.

    Every branch saves its input and what joins it to the stream (the gate's factor, or the
    LayerNorm's input). Dropout saves one byte per element.
    """
    num_feedforwards = 2 if model.macaron else 1
    num_branches = num_feedforwards + 1
    stream, mask = _stream(model, rows, width), _stream(model, rows, 1)
    joins = num_branches * (2 * stream + (mask if model.dropout else 0))
    # What the activation function and the projection after it need of the inner width.
    num_inner = {"relu": 1, "gelu": 2, "swiglu": 4}[model.activation]
    inner = rows * model.seq_length * model.ffn_width * width
    return joins + num_feedforwards * num_inner * inner + _attention_kept(model, rows, width)


def _attention_kept(model: ModelConfig, rows: int, width: int) -> int:
    """Return what attention saves besides its input: q, k, v, its output, and weights."""
    projections = 4 * _stream(model, rows, width)
    if _selects(model):
        # Of every row k float32 weights, and k + 1 int64 positions from the search for ties.
        top_k = model.attention.top_k or 0
        numbers = (2 if model.attention.dropout else 1) * FLOAT * top_k + 8 * (top_k + 1)
        return projections + rows * model.num_heads * model.seq_length * numbers
    if not model.attention.residual_scores:
        return projections + _penalties(model, width)
    pairs = _scores(model, rows) // FLOAT
    dropout = model.attention.dropout > 0
    widened = 2 * _stream(model, rows, FLOAT - width)  # q and k, saved as float32
    softmax = FLOAT if dropout or width != FLOAT else 0  # beside the weights that multiply v
    return projections + widened + pairs * (width + softmax + (1 if dropout else 0))


def _selects(model: ModelConfig) -> bool:
    return model.attention.top_k is not None and model.attention.top_k < model.seq_length


def _penalties(model: ModelConfig, width: int) -> int:
    """Return ALiBi's bias as PyTorch's fused attention takes it; without ALiBi it needs none."""
    return model.num_heads * model.seq_length**2 * width if model.position == "alibi" else 0


def _block_working(model: ModelConfig, rows: int, width: int) -> int:
    """Return what a block needs for the moment: gradients of its tensors, or attention's pairs."""
    inner = rows * model.seq_length * model.ffn_width * width
    new_weight_gradient = model.hidden_size * model.ffn_width * width
    gradients = 2 * _stream(model, rows, width) + new_weight_gradient
    return gradients + max(2 * inner, _attention_working(model, rows, width))


def _attention_working(model: ModelConfig, rows: int, width: int) -> int:
    """Return the square tensors alive at once while attention runs, forward or backward."""
    scores, positions = _scores(model, rows), 2 * model.seq_length**2 * FLOAT
    if model.attention.residual_scores:
        # The scores that came in, those that leave, and scores with penalties or gradients.
        return 3 * scores + positions
    return scores + positions if _selects(model) else _penalties(model, width)


def _end_kept(model: ModelConfig, rows: int, width: int) -> int:
    """Return what final norm, head and loss save: their inputs, and log-probabilities in fp32."""
    inputs = (2 if model.final_norm else 1) * _stream(model, rows, width)
    return inputs + _logits(model, rows, FLOAT)


def _end_working(config: Config) -> int:
    """Return two gradients of the logits, which plain PyTorch holds and the kernels do not."""
    return 2 * _logits(config.model, config.batch.micro_size, FLOAT)


def _logits(model: ModelConfig, rows: int, width: int) -> int:
    return rows * model.seq_length * model.vocab_size * width
