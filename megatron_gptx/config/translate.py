"""Settings of GPT-NeoX and Megatron-LM as options of ours."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from megatron_gptx.config.foreign import Setting
from megatron_gptx.config.foreign_names import DEFAULTS, NOT_NEEDED, NUMBERS, ONLY, SAME, WORDS
from megatron_gptx.config.options import walk_options
from megatron_gptx.config.schema import PASSED_ON
from megatron_gptx.config.yaml_reader import Place


class Translation(NamedTuple):
    """Our options by path, and what could not be translated, one line each."""

    options: dict[str, Any]
    not_needed: list[str]
    unknown: list[str]


def translate(settings: Mapping[str, Setting], *, vocab_size: int | None = None) -> Translation:
    """Return our options for settings of GPT-NeoX or Megatron-LM.

    Defaults of theirs that are not ours are written out. Every setting ends in exactly one of the
    three parts of the result.

    Args:
        settings: by name.
        vocab_size: of the tokenizer, which they ask when they start; null leaves it out.
    """
    translator = _Translator(settings)
    translator.run(vocab_size)
    order = {".".join(option.path): number for number, option in enumerate(walk_options())}
    options = sorted(translator.options.items(), key=lambda item: order.get(item[0], len(order)))
    left_out = [
        [text for _, text in sorted(lines)] for lines in (translator.not_needed, translator.unknown)
    ]
    return Translation(dict(options), *left_out)


class _Translator:
    def __init__(self, settings: Mapping[str, Setting]) -> None:
        self.left = dict(settings)
        self.options: dict[str, Any] = {}
        self.not_needed: list[tuple[Place, str]] = []
        self.unknown: list[tuple[Place, str]] = []

    def run(self, vocab_size: int | None) -> None:
        for name, setting in list(self.left.items()):
            if any("$" in text for text in _texts(setting.value)):
                self._refuse(self.left.pop(name), "a variable that the file does not set")
        for name in NUMBERS:
            value = self.left[name].value if name in self.left else 0
            if isinstance(value, bool) or not isinstance(value, int | float):
                self._refuse(self.left.pop(name), "should be a number")
        for name, path in SAME.items():
            if name in self.left:
                setting = self.left.pop(name)
                self.options.setdefault(path, setting.value)
        for name, (path, words) in WORDS.items():
            if name in self.left and not isinstance(self.left[name].value, list | dict):
                setting = self.left.pop(name)
                if setting.value in words:
                    self._set_word(path, words[setting.value])
                else:
                    self._refuse(setting, f"{path} has no such value")
        self._batch()
        self._widths()
        self._vocabulary(vocab_size)
        self._optimizer()
        self._schedule()
        self._recompute()
        self._parallel()
        self._data()
        for path, value in DEFAULTS.items():
            self.options.setdefault(path, value)
        self._rest()

    def _take(self, *names: str, default: Any = None) -> Any:
        """Return the value of the first of these settings that is given; all are done with."""
        found = [self.left.pop(name).value for name in names if name in self.left]
        return found[0] if found else default

    def _refuse(self, setting: Setting, reason: str) -> None:
        text = f"{setting.where}: {setting.name}: {_show(setting.value)}: {reason}"
        self.unknown.append((setting.place, text))

    def _drop(self, setting: Setting, reason: str) -> None:
        self.not_needed.append((setting.place, f"{setting.where}: {setting.name}: {reason}"))

    def _set_word(self, path: str, value: Any) -> None:
        # `fp16: {enabled: false}` must not undo `bf16: {enabled: true}`.
        if path != "precision" or self.options.get(path, "fp32") == "fp32":
            self.options[path] = value

    def _batch(self) -> None:
        samples = self.left.get("train_samples")
        batch = self.options.get("training.global_batch_size")
        if samples and batch:
            self.options["training.steps"] = math.ceil(self._take("train_samples") / batch)

    def _widths(self) -> None:
        hidden = self.options.get("model.hidden_size")
        if self.options.get("model.activation") == "swiglu" and hidden:
            # Megatron's default for a gated feed-forward keeps the parameters of a plain one.
            self.options.setdefault("model.ffn_hidden_size", int(4 * hidden * 2 / 3 / 64) * 64)

    def _vocabulary(self, vocab_size: int | None) -> None:
        ranks = self.left.get("model_parallel_size") or self.left.get("tensor_model_parallel_size")
        unit = self._take("make_vocab_size_divisible_by", default=128)
        unit *= ranks.value if ranks else 1
        size = self._take("vocab_size", default=vocab_size)
        if size is not None:
            self.options.setdefault("model.vocab_size", -(-size // unit) * unit)

    def _optimizer(self) -> None:
        betas = self._take("optimizer.params.betas")
        first, second = (self._take(name) for name in ("adam_beta1", "adam_beta2"))
        if betas or first or second:
            self.options["optimizer.betas"] = betas or [first or 0.9, second or 0.999]

    def _schedule(self) -> None:
        steps = self.options.get("training.steps") or 0
        self.options.setdefault("schedule.name", "linear")
        decay = self._take("lr_decay_iters")
        # NeoX's warm-up is a share of the run, Megatron's a number or a share.
        share = self._take("warmup", "lr_warmup_fraction")
        warmup = self._take("lr_warmup_iters")
        if warmup is None:
            warmup = round((share or 0) * (decay or steps))
        self.options["schedule.warmup_steps"] = warmup
        wsd = self._take("lr_wsd_decay_iters")
        if self.options["schedule.name"] == "wsd":
            self.options["schedule.decay_steps"] = wsd
        elif decay and decay != steps and decay > warmup:
            self.options["schedule.decay_steps"] = decay - warmup
        lowest, peak = self._take("min_lr", default=0.0), self.options.get("optimizer.lr")
        self.options["schedule.min_lr_ratio"] = lowest / peak if peak else 0.0

    def _recompute(self) -> None:
        layers = self._take("checkpoint_num_layers", "recompute_num_layers", default=1)
        granularity = self.left.get("recompute_granularity")
        full = granularity is not None and granularity.value == "full"
        if full:
            self._take("recompute_granularity", "recompute_method")
        if self._take("checkpoint_activations", default=False) or full:
            self.options["training.checkpoint_activations"] = layers

    def _parallel(self) -> None:
        stages = self._take("pipe_parallel_size")
        if stages is not None:
            self.options["parallel.pipeline_stages"] = max(1, stages)  # NeoX's 0 is one stage
        if self._take("tensorboard_dir"):
            self.options["logging.tensorboard"] = True
        if "load" in self.left and self.left["load"].value == self.options.get("output.run_dir"):
            self._drop(self.left.pop("load"), "a run resumes from its own folder")

    def _data(self) -> None:
        for part in ("train", "valid"):
            paths = self._take(f"{part}_data_paths")
            weights = self._take(f"{part}_data_weights")
            if paths:
                self.options[f"data.{part}"] = _blend(paths, weights or [1.0] * len(paths))
            elif (words := self._take(f"{part}_data_path")) is not None:
                self.options[f"data.{part}"] = _weighted(words)
            labels = self._take(f"{part}_label_data_paths")
            if labels and paths:
                pairs = dict(zip(paths, labels, strict=False))
                self.options.setdefault("data.labels", {}).update(pairs)
        self._fill_in_the_middle()
        split = self._take("split", default="969, 30, 1")
        # Beside training data named otherwise, data_path stays among what is not translated.
        if "data.train" not in self.options and (words := self._take("data_path")) is not None:
            self.options["data.train"] = _weighted(words)
            self.options["data.split"] = _split(split)
        for name in ("vocab_file", "tokenizer_model"):
            setting = self.left.get(name)
            if setting and str(setting.value).endswith(".json") and "merge_file" not in self.left:
                self.options["data.tokenizer"] = self._take(name)

    def _fill_in_the_middle(self) -> None:
        wanted = self._take("fim_data", default=False)
        for name in ("rate", "spm_rate", "prefix", "middle", "suffix"):
            rate = "rate" in name
            value = self._take(f"fim_{name}" if rate else f"fim_{name}_token")
            if wanted and (rate or value is not None):
                self.options[f"data.fill_in_the_middle.{name}"] = 0.5 if value is None else value

    def _rest(self) -> None:
        for setting in self.left.values():
            name, section = setting.name, setting.name.partition(".")[0]
            allowed = ONLY.get(name)
            if allowed and setting.value not in allowed:
                self._refuse(setting, f"here it can only be {' or '.join(map(str, allowed))}")
            elif allowed or name in NOT_NEEDED:
                self._drop(setting, NOT_NEEDED.get(name, "the only value there is"))
            elif name == "attention_config":
                if set(_texts(setting.value)) == {"global"}:
                    self._drop(setting, "all layers see all tokens")
                else:
                    self._refuse(setting, "all layers are alike; model.attention.top_k is sparse")
            elif name == "max_position_embeddings":
                if setting.value == self.options.get("model.seq_length"):
                    self._drop(setting, "equals model.seq_length")
                else:
                    self._refuse(setting, "positions are as many as model.seq_length")
            elif name in ("vocab_file", "merge_file", "tokenizer_model"):
                self._refuse(setting, "data.tokenizer takes one tokenizer.json: make it of these")
            elif section in PASSED_ON and not name.endswith("enabled"):
                self.options[f"deepspeed.{name}"] = setting.value
            else:
                self._refuse(setting, "no option here")


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by path as nested mappings, in the order of the schema's sections."""
    tree: dict[str, Any] = {}
    for path, value in options.items():
        *outer, name = path.split(".")
        place = tree
        for key in outer:
            place = place.setdefault(key, {})
        place[name] = value
    return tree


def _blend(paths: Any, weights: Any) -> Any:
    if not isinstance(paths, list):
        return paths
    if len(paths) == 1:
        return paths[0]
    return dict(zip(paths, weights, strict=False))


def _weighted(words: Any) -> Any:
    """Return what `--data-path` says: a prefix, prefixes, or weights and prefixes in turn."""
    if not isinstance(words, list):
        return words
    if isinstance(words[0], int | float) and len(words) % 2 == 0:
        return dict(zip(words[1::2], words[::2], strict=True))
    return dict.fromkeys(words, 1.0)


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in nested lists."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, list):
            yield from _texts(item)
        elif isinstance(item, str):
            yield item


def _split(split: Any) -> str:
    shares = split if isinstance(split, list) else str(split).split(",")
    return ",".join(str(share).strip(" ,") for share in shares)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
