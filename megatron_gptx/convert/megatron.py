"""Megatron-LM's rules: what its arguments mean, and what it makes of those left out."""

from typing import Any

from megatron_gptx.convert import megatron_names as names
from megatron_gptx.convert.data import split_shares, translate_words
from megatron_gptx.convert.ledger import Ledger
from megatron_gptx.convert.schedule import set_decay, set_lowest, set_warmup
from megatron_gptx.convert.shapes import Shape
from megatron_gptx.convert.vocabulary import set_tokenizer, set_vocabulary

TOOL = "Megatron-LM"
_FIM = ("rate", "spm_rate", "prefix_token", "middle_token", "suffix_token")
_RECOMPUTE = ("recompute_num_layers", "activations_checkpoint_num_layers", "checkpoint_num_layers")


def decide_megatron(ledger: Ledger, vocab_size: int | None) -> None:
    """Decide every argument, and write its defaults where nothing was given."""
    ledger.refuse_numbers(names.NUMBERS, names.ABOVE_ZERO)
    _optimizer(ledger)
    ledger.same(names.SAME)
    _stable_style(ledger)
    ledger.words(names.WORDS, names.INSTEAD)
    ledger.only(names.ONLY)
    _attention(ledger)
    _positions(ledger)
    _width(ledger)
    _vocabulary(ledger, vocab_size)
    for path, value in names.DEFAULTS.items():
        ledger.options.setdefault(path, value)
    _schedule(ledger)
    _recompute(ledger)
    _output(ledger)
    _data(ledger)
    ledger.parts(names.PART_OF)
    ledger.finish(names.NOT_NEEDED, TOOL)


def feedforward_width(ledger: Ledger) -> int:
    """Return the inner width: a gated feed-forward has two thirds, to have as many parameters."""
    hidden = ledger.number("hidden_size", 0)
    default = int(4 * hidden * 2 / 3 / 64) * 64 if ledger.given("swiglu") else 4 * hidden
    return int(ledger.number("ffn_hidden_size", default))


def megatron_shape(ledger: Ledger) -> Shape | str:
    """Return the model that Megatron-LM builds, or why its size is not known here."""
    other = ("script", "spec", "num_experts", "multi_latent_attention", "mtp_num_layers")
    if found := [name for name in other if name in ledger.settings]:
        return f"models with {', '.join(found)} are not known here"
    needed = ("num_layers", "hidden_size", "num_attention_heads", "seq_length")
    layers, hidden, heads, length = (ledger.number(name) for name in needed)
    if None in (layers, hidden, heads, length):
        missing = [name for name in needed if ledger.number(name) is None]
        return f"without {', '.join(missing)}"
    inner = feedforward_width(ledger)
    plain_norm = ledger.given("normalization", "LayerNorm") == "LayerNorm"
    biases = not ledger.given("disable_bias_linear", False)
    return Shape(
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=_groups(ledger) or heads,
        head_dim=ledger.number("kv_channels", hidden // heads),
        outer=2 * inner if _gated(ledger) else inner,
        inner=inner,
        positions=ledger.number("max_position_embeddings", length) if _learned(ledger) else 0,
        norm=2 * hidden if plain_norm else hidden,
        tied=not ledger.given("untie_embeddings_and_output_weights", False),
        attention_biases=biases,
        feedforward_biases=biases,
    )


def _gated(ledger: Ledger) -> bool:
    return bool(ledger.given("swiglu") or ledger.given("quick_geglu"))


def _learned(ledger: Ledger) -> bool:
    kind = ledger.given("position_embedding_type", "learned_absolute")
    if ledger.given("use_rotary_position_embeddings") or ledger.given("no_position_embedding"):
        return False
    return bool(kind == "learned_absolute")


def _groups(ledger: Ledger) -> int | None:
    """Return the number of heads that have keys and values, or None where all have."""
    if not ledger.given("group_query_attention"):
        return None
    return int(ledger.number("num_query_groups", 1))


def _attention(ledger: Ledger) -> None:
    heads = ledger.value("num_attention_heads")
    if ledger.open("group_query_attention"):
        if _groups(ledger) == heads:
            ledger.drop("group_query_attention", "every head has keys and values of its own")
        else:
            ledger.refuse("group_query_attention", "every head has keys and values of its own")
    channels, hidden = ledger.value("kv_channels"), ledger.value("hidden_size")
    if channels and heads and hidden and channels * heads != hidden:
        ledger.refuse("kv_channels", f"a head has hidden_size / num_heads = {hidden // heads}")


def _positions(ledger: Ledger) -> None:
    """Decide what tells a token its place."""
    kind = ledger.given("position_embedding_type")
    rotary = "use_rotary_position_embeddings"
    if ledger.open(rotary):
        ledger.options["model.position"] = "alibi"
        ledger.refuse(rotary, "model.position has no such value; alibi stands in for it")
    if ledger.open("no_position_embedding"):
        if kind is None and rotary not in ledger.settings:
            ledger.translate("no_position_embedding", "model.position", "none")
        else:
            ledger.drop("no_position_embedding", "position_embedding_type decides")
    if ledger.open("max_position_embeddings"):
        if ledger.value("max_position_embeddings") == ledger.options.get("model.seq_length"):
            ledger.drop("max_position_embeddings", "equals model.seq_length")
        elif not _learned(ledger):
            ledger.drop("max_position_embeddings", "positions have no table")
        else:
            ledger.refuse("max_position_embeddings", "positions are as many as model.seq_length")
    ledger.documents(learned=_learned(ledger))


def _width(ledger: Ledger) -> None:
    hidden, width = ledger.value("hidden_size"), feedforward_width(ledger)
    if ledger.open("ffn_hidden_size"):
        ledger.translate("ffn_hidden_size", "model.ffn_hidden_size", width)
    elif hidden and width != 4 * hidden:
        ledger.options["model.ffn_hidden_size"] = width


def _vocabulary(ledger: Ledger, vocab_size: int | None) -> None:
    size = ledger.value("vocab_size")
    if size is not None and ledger.given("tokenizer_type") == "NullTokenizer":
        size += 1  # the end of document comes on top
    ranks = ledger.value("tensor_model_parallel_size", ledger.value("model_parallel_size", 1))
    set_vocabulary(ledger, size if vocab_size is None else vocab_size, ranks)


def _stable_style(ledger: Ledger) -> None:
    """Refuse a WSD whose fall is not linear; where nothing is said, it is exponential."""
    style = ledger.given("lr_wsd_decay_style", "exponential")
    if ledger.given("lr_decay_style") != "WSD" or style == "linear":
        return
    ledger.options["schedule.name"] = "wsd"
    for name in ("lr_decay_style", "lr_wsd_decay_style"):
        if ledger.open(name):
            ledger.refuse(name, f"falls in the style {style}; `wsd` falls linearly")


def _optimizer(ledger: Ledger) -> None:
    name = ledger.given("optimizer", "adam")
    if name == "lion":
        ledger.translate("optimizer", "optimizer.name", "lion")
        _betas(ledger, {"lion_beta1": 0.95, "lion_beta2": 0.98})
        for adams in ("adam_beta1", "adam_beta2", "adam_eps"):
            if ledger.open(adams):
                ledger.drop(adams, "has no meaning with lion")
    else:
        if name in ("muon", "dist_muon"):
            _muon(ledger)
        _betas(ledger, {"adam_beta1": 0.9, "adam_beta2": 0.999})
    if ledger.open("clip_grad"):
        limit = ledger.value("clip_grad") or None  # its 0 does not clip
        ledger.translate("clip_grad", "optimizer.gradient_clipping", limit)


def _betas(ledger: Ledger, defaults: dict[str, float]) -> None:
    betas = [ledger.value(name, default) for name, default in defaults.items()]
    ledger.options["optimizer.betas"] = betas
    for name in defaults:
        if ledger.open(name):
            ledger.used(name, "optimizer.betas")


def _muon(ledger: Ledger) -> None:
    """Decide Muon, which looks ahead there only where asked, and takes steps of another size."""
    factor = ledger.value("muon_extra_scale_factor", 1.0)
    ledger.options["optimizer.name"] = "muon"
    if factor == names.MUON_SCALE:
        ledger.used("optimizer", "optimizer.name")
        ledger.drop("muon_extra_scale_factor", "as here")
    else:
        ledger.refuse(
            "optimizer",
            f"its updates are scaled by {factor}, here by {names.MUON_SCALE}; see optimizer.lr",
        )
    ledger.options["optimizer.nesterov"] = False
    ledger.same(names.MUON)
    for name in names.MUON_NOT_NEEDED:
        if ledger.open(name):
            ledger.drop(name, "with muon, matrices are whole, and so is all of its state")
    for name in ("fp16", "bf16"):
        if ledger.open(name):
            ledger.refuse(name, "with muon, precision is fp32")


def _schedule(ledger: Ledger) -> None:
    """Decide length and learning rate, which are counted in steps, or in samples."""
    batch = ledger.value("global_batch_size")
    if ledger.open("train_samples"):
        if batch is None:
            ledger.refuse("train_samples", "a number of steps only with global_batch_size")
        else:
            steps = ledger.value("train_samples") // batch
            ledger.translate("train_samples", "training.steps", steps)
    steps = ledger.options.get("training.steps")
    steps = steps if isinstance(steps, int | float) else None
    end, end_name = _steps(ledger, "lr_decay", batch)
    warmup_steps, warmup_name = _steps(ledger, "lr_warmup", batch)
    fraction, total = ledger.value("lr_warmup_fraction"), end or steps
    if fraction is not None:
        warmup_steps, warmup_name = (fraction * total if total else None), "lr_warmup_fraction"
        for name in ("lr_warmup_iters", "lr_warmup_samples"):
            if ledger.open(name):
                ledger.drop(name, "lr_warmup_fraction decides")
    elif not warmup_name:
        warmup_steps = 0
    warmup = set_warmup(ledger, [warmup_name], warmup_steps)
    set_lowest(ledger)
    if ledger.options["schedule.name"] == "wsd":
        if ledger.open("lr_wsd_decay_style"):
            ledger.used("lr_wsd_decay_style", "schedule.name")
        _stable_decay(ledger, end, end_name, batch)
        return
    for name in ("lr_wsd_decay_style", "lr_wsd_decay_iters", "lr_wsd_decay_samples"):
        if ledger.open(name):
            ledger.drop(name, "has no meaning without lr_decay_style WSD")
    set_decay(ledger, [end_name], end, warmup)


def _stable_decay(ledger: Ledger, end: float | None, end_name: str, batch: Any) -> None:
    """Decide the last part of a rate that stays constant before it."""
    length, name = _steps(ledger, "lr_wsd_decay", batch)
    if name and ledger.open(name):
        if length is None:
            ledger.refuse(name, "a number of steps only with global_batch_size")
        else:
            ledger.translate(name, "schedule.decay_steps", round(length))
    if end_name and ledger.open(end_name):
        if end == ledger.options.get("training.steps"):
            ledger.drop(end_name, "the decay ends with the run")
        else:
            ledger.refuse(end_name, "the decay ends with the run")


def _steps(ledger: Ledger, stem: str, batch: Any) -> tuple[float | None, str]:
    """Return what `--STEM-iters` or `--STEM-samples` says in steps, and which of them it was."""
    if f"{stem}_iters" in ledger.settings:
        return ledger.value(f"{stem}_iters"), f"{stem}_iters"
    if f"{stem}_samples" in ledger.settings:
        samples = ledger.value(f"{stem}_samples")
        return (samples / batch if samples is not None and batch else None), f"{stem}_samples"
    return None, ""


def _recompute(ledger: Ledger) -> None:
    """Decide recomputation of whole layers; that of parts of a layer has no option."""
    path = "training.checkpoint_activations"
    layers = next((ledger.value(name) for name in _RECOMPUTE if ledger.value(name)), 1)
    full = ledger.value("recompute_granularity") == "full"
    old = "activations_checkpoint_method" in ledger.settings
    for name, on in (
        ("recompute_granularity", full),
        ("checkpoint_activations", True),
        ("activations_checkpoint_method", old),
    ):
        if ledger.open(name) and on:
            ledger.translate(name, path, layers)
            for counted in _RECOMPUTE:
                if ledger.open(counted):
                    ledger.used(counted, path)


def _output(ledger: Ledger) -> None:
    """Decide checkpoints and logs."""
    if "checkpoint.interval" not in ledger.options and "training.steps" in ledger.options:
        ledger.options["checkpoint.interval"] = ledger.options["training.steps"]
    if ledger.open("save_retain_interval"):
        kept = ledger.value("save_retain_interval")
        ledger.translate("save_retain_interval", "checkpoint.keep_every", kept)
        ledger.options["checkpoint.keep_last"] = 1
    if ledger.open("wandb_project"):
        ledger.translate("wandb_project", "logging.wandb_project", ledger.value("wandb_project"))
        ledger.options["logging.wandb"] = True
    if ledger.open("tensorboard_dir"):
        ledger.used("tensorboard_dir", "logging.tensorboard")
        ledger.options["logging.tensorboard"] = True
    ledger.beginning()


def _data(ledger: Ledger) -> None:
    for part in ("train", "valid"):
        if ledger.open(f"{part}_data_path"):
            translate_words(ledger, f"{part}_data_path", f"data.{part}")
    own = "train_data_path" in ledger.settings or "valid_data_path" in ledger.settings
    if ledger.open("data_path"):
        if "data.train" in ledger.options:
            ledger.refuse("data_path", "train_data_path names other training data")
        else:
            translate_words(ledger, "data_path", "data.train")
    if ledger.open("split"):
        if own:
            ledger.drop("split", "training and validation data are named apart")
        else:
            ledger.translate("split", "data.split", split_shares(ledger.value("split")))
    elif "data_path" in ledger.settings and not own:
        ledger.options["data.split"] = "969,30,1"
    _fill_in_the_middle(ledger)
    set_tokenizer(ledger)


def _fill_in_the_middle(ledger: Ledger) -> None:
    wanted = ledger.value("fim_data") is True
    if ledger.open("fim_data"):
        ledger.used("fim_data", "data.fill_in_the_middle")
    for name in _FIM:
        path = f"data.fill_in_the_middle.{name.removesuffix('_token')}"
        if not wanted:
            if ledger.open(f"fim_{name}"):
                ledger.drop(f"fim_{name}", "has no meaning without fim_data")
        elif ledger.open(f"fim_{name}"):
            ledger.translate(f"fim_{name}", path, ledger.value(f"fim_{name}"))
        elif "rate" in name:
            ledger.options[path] = 0.5
