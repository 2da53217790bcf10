"""GPT-NeoX's rules: what its settings mean, and what it makes of those left out."""

from typing import Any

from megatron_gptx.config.schema import PASSED_ON
from megatron_gptx.convert import neox_names as names
from megatron_gptx.convert.data import split_shares, translate_lists
from megatron_gptx.convert.ledger import Ledger
from megatron_gptx.convert.schedule import set_decay, set_lowest, set_warmup
from megatron_gptx.convert.shapes import Shape
from megatron_gptx.convert.vocabulary import set_tokenizer, set_vocabulary

TOOL = "GPT-NeoX"
# Of its gated activations this one is known here.
GATED = ("swiglu", "geglu", "reglu", "bilinear", "glu")
DENSE = {"global", "flash"}
_BIASES = "attention and feed-forwards have biases together, or none has"


def decide_neox(ledger: Ledger, vocab_size: int | None) -> None:
    """Decide every setting, and write its defaults where nothing was given."""
    ledger.drop_nothing()
    ledger.refuse_numbers(names.NUMBERS, names.ABOVE_ZERO)
    _epochs(ledger)
    _optimizer(ledger)
    ledger.same(names.SAME)
    for name, path in names.NONE_FOR_ZERO.items():
        if ledger.open(name):
            ledger.translate(name, path, ledger.value(name) or None)
    ledger.words(names.WORDS, names.INSTEAD)
    ledger.only(names.ONLY)
    _precision(ledger)
    _activation(ledger)
    _biases(ledger)
    _attention(ledger)
    _positions(ledger)
    ranks = ledger.value("model_parallel_size", 1)
    set_vocabulary(ledger, ledger.value("vocab_size", vocab_size), ranks)
    for path, value in names.DEFAULTS.items():
        ledger.options.setdefault(path, value)
    _schedule(ledger)
    _checkpoints(ledger)
    _parallel(ledger)
    _data(ledger)
    ledger.parts(names.PART_OF)
    _deepspeed(ledger)
    ledger.finish(names.NOT_NEEDED, TOOL)


def feedforward_width(ledger: Ledger) -> tuple[int, int]:
    """Return the outputs of the first and the inputs of the second projection of a feed-forward.

    Gated ones are narrowed to two thirds of the given width, and halved, so that they have as many
    parameters as plain ones; both are rounded up to `mlp_multiple_of`.

    Source: `ParallelMLP`, and `LLaMAParallelMLP` of earlier versions, in megatron/model.
    """
    hidden = ledger.number("hidden_size", 0)
    given = ledger.number("intermediate_size") or ledger.number("feedforward_size")
    unit = ledger.number("mlp_multiple_of", 1)
    if ledger.given("mlp_type") == "llama":
        width = int(given or _rounded(int(2 * hidden * 4 / 3), 256))
        return 2 * width, width
    outer = int(given or ledger.number("expansion_factor", 4) * hidden)
    if not gated(ledger):
        return _rounded(outer, 2 * unit), _rounded(outer, unit)
    outer = int(outer * 2 / 3)
    return _rounded(outer, 2 * unit), _rounded(outer // 2, unit)


def neox_shape(ledger: Ledger) -> Shape | str:
    """Return the model that GPT-NeoX builds, or why its size is not known here."""
    needed = ("num_layers", "hidden_size", "num_attention_heads", "seq_length")
    layers, hidden, heads, length = (ledger.number(name) for name in needed)
    if None in (layers, hidden, heads, length):
        missing = [name for name in needed if ledger.number(name) is None]
        return f"without {', '.join(missing)}"
    if not _kinds(ledger.given("attention_config", "global")) <= DENSE:
        return "layers of these kinds are not known here"
    if max(ledger.number("num_experts", 1), ledger.number("moe_num_experts", 1)) > 1:
        return "layers with experts are not known here"
    norm = str(ledger.given("norm", "layernorm"))
    norm_size = 1 if norm == "scalenorm" else hidden
    if "layernorm" in norm and ledger.given("use_bias_in_norms", True):
        norm_size = 2 * hidden
    learned = ledger.given("pos_emb", "learned") == "learned"
    outer, inner = feedforward_width(ledger)
    llama = ledger.given("mlp_type") == "llama"
    return Shape(
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=ledger.number("num_kv_heads", heads),
        head_dim=hidden // heads,
        outer=outer,
        inner=inner,
        positions=ledger.number("max_position_embeddings", length) if learned else 0,
        norm=norm_size,
        tied=not ledger.given("no_weight_tying", False),
        attention_biases=bool(ledger.given("use_bias_in_attn_linear", True)),
        feedforward_biases=bool(ledger.given("use_bias_in_mlp", True)) and not llama,
    )


def gated(ledger: Ledger) -> bool:
    """Tell whether its feed-forwards multiply two projections."""
    return ledger.given("mlp_type") == "llama" or ledger.given("activation") in GATED


def _rounded(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _epochs(ledger: Ledger) -> None:
    """Refuse a run in epochs whose default warm-up, a hundredth of its steps, cannot be told."""
    told = {"train_iters", "lr_decay_iters", "warmup"} & set(ledger.settings)
    if ledger.open("train_epochs") and not told:
        ledger.options["training.epochs"] = ledger.value("train_epochs")
        ledger.refuse("train_epochs", "a hundredth of it is warm-up: set schedule.warmup_steps")


def _optimizer(ledger: Ledger) -> None:
    """Decide the optimizer where it is Lion; AdamW needs no option, and no other is known."""
    lion = False
    for name in ("optimizer.type", "optimizer_type"):
        if ledger.open(name) and str(ledger.value(name)).lower() == "lion":
            ledger.translate(name, "optimizer.name", "lion")
            lion = True
    if lion:
        ledger.options["optimizer.betas"] = names.LION_BETAS
        if ledger.open("optimizer.params.eps"):
            ledger.drop("optimizer.params.eps", "Lion divides by nothing")


def _precision(ledger: Ledger) -> None:
    """Decide the arithmetic, which may be named in four places."""
    words = {"fp16": "fp16", "fp32": "fp32", "bfloat16": "bf16"}
    ledger.words({"precision": ("precision", words)})
    type_ = str(ledger.value("fp16.type", "fp16"))
    known = {"fp16": "fp16", "float16": "fp16", "bfloat16": "bf16", "bf16": "bf16"}
    if type_ not in known:
        ledger.refuse("fp16.type", "precision is fp16, bf16 or fp32")
    for name, word in (("fp16.enabled", known.get(type_)), ("bf16.enabled", "bf16")):
        if not ledger.open(name):
            continue
        if ledger.settings[name].value is not True or word is None:
            ledger.drop(name, "precision decides")
        else:
            ledger.translate(name, "precision", word)
    if ledger.open("fp16.type") and ledger.options.get("precision") == known[type_]:
        ledger.used("fp16.type", "precision")
    if ledger.options.get("precision") == "fp16":
        for name in names.LOSS_SCALE:
            if ledger.open(f"fp16.{name}"):
                value = ledger.value(f"fp16.{name}")
                ledger.translate(f"fp16.{name}", f"deepspeed.fp16.{name}", value)


def _activation(ledger: Ledger) -> None:
    """Decide the non-linearity and the width it acts on."""
    problem = None
    if ledger.number("hidden_size"):
        outer, inner = feedforward_width(ledger)
        if outer != (2 * inner if gated(ledger) else inner):
            problem = f"makes projections of {outer} and {inner} that do not fit each other"
        elif inner != 4 * ledger.number("hidden_size"):
            ledger.options["model.ffn_hidden_size"] = inner
    else:
        problem = "a share of hidden_size, which is not given"
    for name in ("intermediate_size", "feedforward_size", "expansion_factor", "mlp_multiple_of"):
        if ledger.open(name):
            if problem:
                ledger.refuse(name, problem)
            else:
                ledger.used(name, "model.ffn_hidden_size")
    if problem and gated(ledger) and ledger.number("hidden_size") and ledger.open("activation"):
        ledger.refuse("activation", problem)
    _nonlinearity(ledger)


def _nonlinearity(ledger: Ledger) -> None:
    word, kind = ledger.value("activation"), ledger.value("mlp_type", "regular")
    if ledger.open("mlp_type"):
        if kind == "llama" and word in ("silu", "swish"):
            ledger.options["model.activation"] = "swiglu"
            ledger.used("activation", "model.activation")
            if ledger.value("use_bias_in_attn_linear", True):
                ledger.refuse("mlp_type", _BIASES)
            else:
                ledger.used("mlp_type", "model.activation")
        elif kind == "regular":
            ledger.drop("mlp_type", "as here")
        else:
            ledger.refuse("mlp_type", "feed-forwards are plain, or gated as `swiglu`")
    known = {word: word for word in ("gelu", "relu", "swiglu")}
    ledger.words({"activation": ("model.activation", known)})


def _biases(ledger: Ledger) -> None:
    """Decide the biases, which attention and feed-forwards share here."""
    llama = ledger.given("mlp_type") == "llama"
    attention = ledger.value("use_bias_in_attn_linear", True)
    feedforward = False if llama else ledger.value("use_bias_in_mlp", True)
    ledger.options["model.biases"] = attention and feedforward
    for name in ("use_bias_in_attn_linear", "use_bias_in_mlp"):
        if not ledger.open(name):
            continue
        if attention == feedforward:
            ledger.used(name, "model.biases")
        else:
            ledger.refuse(name, _BIASES)


def _attention(ledger: Ledger) -> None:
    """Decide what kind of layers there are."""
    if ledger.open("attention_config"):
        kinds = _kinds(ledger.value("attention_config"))
        if kinds <= DENSE:
            ledger.drop("attention_config", "all layers see all tokens")
        else:
            kinds_text = ", ".join(sorted(kinds - DENSE))
            ledger.refuse("attention_config", f"no layers of the kind {kinds_text}")
    if ledger.open("num_kv_heads"):
        if ledger.value("num_kv_heads") == ledger.value("num_attention_heads"):
            ledger.drop("num_kv_heads", "every head has keys and values of its own")
        else:
            ledger.refuse("num_kv_heads", "every head has keys and values of its own")


def _kinds(config: Any) -> set[str]:
    """Return the kinds of layers in `[[["global", "local"], 6]]`."""
    kinds: set[str] = set()
    for entry in config if isinstance(config, list) else [config]:
        # Beside the kinds stands how often they are repeated: a number, or `all`.
        first = entry[0] if isinstance(entry, list) and entry else entry
        kinds |= {str(kind) for kind in (first if isinstance(first, list) else [first])}
    return kinds


def _positions(ledger: Ledger) -> None:
    """Decide how many positions there are, and whether they begin anew in each document."""
    learned = ledger.options.get("model.position", "learned") == "learned"
    if ledger.open("max_position_embeddings"):
        rows, length = ledger.value("max_position_embeddings"), ledger.value("seq_length")
        if rows == length:
            ledger.drop("max_position_embeddings", "equals model.seq_length")
        elif not learned:
            ledger.drop("max_position_embeddings", "positions have no table")
        else:
            ledger.refuse("max_position_embeddings", "positions are as many as model.seq_length")
    ledger.documents(learned=learned)


def _schedule(ledger: Ledger) -> None:
    """Decide the learning rate; its warm-up is a share of the steps to the end of the decay.

    Source: `AnnealingLR` in megatron/learning_rates.py.
    """
    steps = ledger.options.get("training.steps")
    steps = steps if isinstance(steps, int | float) else None
    share, end_names = ledger.value("lr_decay_fraction"), ["lr_decay_iters", "lr_decay_fraction"]
    if share is not None:
        end = share * steps if steps else None
        if ledger.open("lr_decay_iters"):
            ledger.drop("lr_decay_iters", "lr_decay_fraction decides")
    else:
        end = ledger.value("lr_decay_iters")
    total = end or steps
    given = ledger.value("warmup", 0.01)
    warmup = set_warmup(
        ledger, ["warmup"], None if total is None and given else given * (total or 0)
    )
    lowest = set_lowest(ledger)
    name = ledger.options["schedule.name"]
    set_decay(ledger, end_names, end, warmup)
    if name == "linear" and 0 < lowest < 1 and total:
        # It falls towards zero, and stops at the lowest rate.
        length = (total or 0) - warmup
        ledger.options["schedule.decay_steps"] = max(1, round((1 - lowest) * length))


def _checkpoints(ledger: Ledger) -> None:
    """Decide when to save, and what recomputation there is."""
    if ledger.open("extra_save_iters"):
        steps = ledger.value("extra_save_iters")
        if isinstance(steps, list) and all(type(step) is int for step in steps):
            # Nothing is learned before the first step; its checkpoint is the seed's.
            kept = sorted({step for step in steps if step > 0})
            ledger.translate("extra_save_iters", "checkpoint.keep_steps", kept)
        else:
            ledger.refuse("extra_save_iters", "should be a list of steps")
    if "checkpoint.interval" not in ledger.options and "training.steps" in ledger.options:
        ledger.options["checkpoint.interval"] = ledger.options["training.steps"]
    if ledger.open("checkpoint_activations"):
        layers = ledger.value("checkpoint_num_layers", 1)
        on = ledger.value("checkpoint_activations") is True
        path = "training.checkpoint_activations"
        ledger.translate("checkpoint_activations", path, layers if on else 0)
        if on and ledger.open("checkpoint_num_layers"):
            ledger.used("checkpoint_num_layers", path)


def _parallel(ledger: Ledger) -> None:
    if ledger.open("pipe_parallel_size"):
        stages = max(1, ledger.value("pipe_parallel_size", 1))  # its 0 is one stage
        ledger.translate("pipe_parallel_size", "parallel.pipeline_stages", stages)
    if ledger.open("tensorboard_dir"):
        ledger.used("tensorboard_dir", "logging.tensorboard")
        ledger.options["logging.tensorboard"] = True
    if ledger.options.get("logging.wandb") is True:
        ledger.options["logging.wandb_project"] = ledger.value("wandb_project", "neox")
        if ledger.open("wandb_project"):
            ledger.used("wandb_project", "logging.wandb_project")
    ledger.beginning()


def _data(ledger: Ledger) -> None:
    for part in ("train", "valid"):
        translate_lists(ledger, part)
    if ledger.open("data_path"):
        if "data.train" in ledger.options:
            ledger.refuse("data_path", "train_data_paths names other training data")
        else:
            ledger.translate("data_path", "data.train", ledger.value("data_path"))
    own = "train_data_paths" in ledger.settings or "data.valid" in ledger.options
    if ledger.open("split"):
        if own:
            ledger.drop("split", "training and validation data are named apart")
        else:
            ledger.translate("split", "data.split", split_shares(ledger.value("split")))
    elif "data_path" in ledger.settings and not own:
        ledger.options["data.split"] = "969,30,1"
    set_tokenizer(ledger)


def _deepspeed(ledger: Ledger) -> None:
    """Hand on what is DeepSpeed's own."""
    for name in ledger.rest():
        inner = name.removeprefix("deepspeed_extra_args.")
        section = inner.partition(".")[0]
        if section in names.WITHOUT_EFFECT:
            off = ledger.settings.get(f"{name.partition(inner)[0]}{section}.enabled")
            if section == "autotuning" or (off is not None and off.value is False):
                ledger.drop(name, "nothing is tuned, and nothing changes while training goes on")
            else:
                ledger.refuse(name, "DeepSpeed does this with models and loaders of its own only")
        elif section in PASSED_ON and section not in ("fp16", "bf16"):
            ledger.translate(name, f"deepspeed.{inner}", ledger.settings[name].value)
