"""Every mistake gives one message that names what is wrong, where, and what to do."""

# One mistake per line keeps the tables readable.
# ruff: noqa: E501

import os
import time
from pathlib import Path

import pytest

from megatron_gptx.config.errors import ConfigError
from megatron_gptx.config.load import load

BASE = """\
model:
  num_layers: 4
  hidden_size: 64
  num_heads: 4
  vocab_size: 100
  seq_length: 32
  macaron: true
training:
  steps: 10
  global_batch_size: 8
  micro_batch_size: 2
optimizer:
  lr: 3e-4
"""


def message(paths: list[str], overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load([Path(path) for path in paths], overrides)
    text = str(caught.value)
    assert "Traceback" not in text
    # Without this a user whose error is not caught would also see the parser's own traceback.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return text


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("base.yml").write_text(BASE)


# (what is replaced in BASE, by what, the line and text of the one problem)
MISTAKES = {
    "a typo": ("num_heads: 4", "num_head: 4", "line 4: model.num_head: unknown key; did you mean 'num_heads'?"),
    "a typo in an optional key": ("  lr: 3e-4", "  lr: 1\n  weight_deca: 1", "line 14: optimizer.weight_deca: unknown key; did you mean 'weight_decay'?"),
    "another spelling": ("  macaron: true", "  attention:\n    topk: 8", "line 8: model.attention.topk: unknown key; did you mean 'top_k'?"),
    "an option one level too high": ("macaron: true", "topk: 8", "line 7: model.topk: unknown key; did you mean 'model.attention.top_k'?"),
    "an option of another section": ("  steps: 10", "  steps: 10\n  lr: 1", "line 10: training.lr: unknown key; `lr` belongs to `optimizer`"),
    "an option of two other sections": ("  steps: 10", "  steps: 10\n  dropout: 0", "line 10: training.dropout: unknown key; `dropout` belongs to `model` or `model.attention`"),
    "an option outside its section": ("optimizer:", "seed: 5\noptimizer:", "line 12: seed: unknown key; `seed` belongs to `training` or `generation`"),
    "a section in a section": ("  steps: 10", "  steps: 10\n  parallel: 1", "line 10: training.parallel: unknown key; `parallel` belongs to the top level"),
    "a section in another case": ("optimizer:", "Schedule:\n  name: linear\noptimizer:", "line 12: Schedule: unknown key; did you mean 'schedule'?"),
    "a dotted key": ("optimizer:", "model.dropout: 0\noptimizer:", "line 12: model.dropout: unknown key; dots are for --set: write 'dropout' under 'model'"),
    "a merge key": ("optimizer:", "<<: {precision: bf16}\noptimizer:", "line 12: <<: unknown key; merge keys are not supported: put shared options into a file of their own"),
    "text for an integer": ("num_layers: 4", 'num_layers: "4"', "line 2: model.num_layers: input should be a valid integer, got '4'"),
    "a float for an integer": ("num_layers: 4", "num_layers: 4.0", "line 2: model.num_layers: input should be a valid integer, got 4.0"),
    "a fraction for an integer": ("steps: 10", "steps: 25e-1", "line 9: training.steps: input should be a valid integer, got 2.5"),
    "a boolean for an integer": ("steps: 10", "steps: true", "line 9: training.steps: input should be a valid integer, got true"),
    "an integer for a boolean": ("macaron: true", "macaron: 1", "line 7: model.macaron: input should be a valid boolean, got 1"),
    "off for false": ("macaron: true", "macaron: off", "line 7: model.macaron: input should be a valid boolean, got 'off'; use true or false"),
    "a word for a number": ("lr: 3e-4", "lr: fast", "line 13: optimizer.lr: input should be a valid number, got 'fast'"),
    "not a number": ("lr: 3e-4", "lr: .nan", "line 13: optimizer.lr: input should be a finite number, got .nan"),
    "infinity": ("lr: 3e-4", "lr: -.inf", "line 13: optimizer.lr: input should be a finite number, got -.inf"),
    "a number beyond floats": ("lr: 3e-4", "lr: 1e999", "line 13: optimizer.lr: input should be a finite number, got 1e999"),
    "a section of DeepSpeed's that is a number": ("optimizer:", "deepspeed: {zero_optimization: 5}\noptimizer:", "line 12: deepspeed.zero_optimization: expected a section with options, got 5"),
    "a misspelt section of DeepSpeed's": ("optimizer:", "deepspeed: {zero_optimisation: {}}\noptimizer:", "line 12: deepspeed.zero_optimisation: unknown key; did you mean 'zero_optimization'?"),
    "a precision of DeepSpeed's": ("optimizer:", "deepspeed: {torch_autocast: {enabled: true}}\noptimizer:", "line 12: deepspeed.torch_autocast: decided by precision; set that instead"),
    "infinity handed to DeepSpeed": ("optimizer:", "deepspeed: {x: .inf}\noptimizer:", "line 12: deepspeed.x: input should be a finite number, got .inf"),
    "an integer beyond 64 bits": ("steps: 10", "steps: 9223372036854775808", "line 9: training.steps: input should be a number of at most 64 bits, got 9223372036854775808"),
    "an integer of thousands of digits": ("steps: 10", "steps: " + "9" * 5000, "line 9: training.steps: input should be a finite number, got " + "9" * 37 + "..."),
    "negative steps": ("steps: 10", "steps: -10", "line 9: training.steps: input should be greater than 0, got -10"),
    "certain dropout": ("macaron: true", "dropout: 1.5", "line 7: model.dropout: input should be less than 1, got 1.5"),
    "an unknown choice": ("macaron: true", "residual: prenorm", "line 7: model.residual: input should be 'rezero', 'pre_norm' or 'post_norm', got 'prenorm'; did you mean 'pre_norm'?"),
    "an unlike choice": ("macaron: true", "residual: highway", "line 7: model.residual: input should be 'rezero', 'pre_norm' or 'post_norm', got 'highway'"),
    "null for a required value": ("steps: 10", "steps: null", "line 9: training.steps: required option is missing: give steps, or epochs"),
    "a required option missing": ("  steps: 10\n", "", "line 8: training.steps: required option is missing: give steps, or epochs"),
    "a required section missing": ("optimizer:\n  lr: 3e-4\n", "", "optimizer: section is missing; it needs lr"),
    "an empty section": ("optimizer:", "schedule:\noptimizer:", "line 12: schedule: input should be a mapping of options, got null; remove the empty section"),
    "a list for a section": ("optimizer:", "schedule: [1]\noptimizer:", "line 12: schedule: input should be a mapping of options, got [1]"),
    "a value for the DeepSpeed section": ("optimizer:", "deepspeed: 1\noptimizer:", "line 12: deepspeed: input should be a mapping, got 1"),
    "a wrong list item": ("  lr: 3e-4", "  lr: 1\n  betas:\n  - 0.9\n  - 1.0", "line 16: optimizer.betas[1]: input should be less than 1, got 1.0"),
    "a list too long": ("  lr: 3e-4", "  lr: 1\n  betas: [0.9, 0.95, 0.99]", "line 14: optimizer.betas: list should have at most 2 items, not 3"),
    "a list too short": ("  lr: 3e-4", "  lr: 1\n  betas: [0.9]", "line 14: optimizer.betas: list should have at least 2 items, not 1"),
    "a key given twice": ("num_heads: 4", "num_heads: 4\n  num_layers: 4", "line 5: model.num_layers: given twice, first on line 2; keep one"),
    "a section given twice": ("  lr: 3e-4", "  lr: 1\nmodel:\n  num_layers: 2\n  hidden_size: 64\n  num_heads: 4\n  vocab_size: 9\n  seq_length: 8", "line 14: model: given twice, first on line 1; keep one"),
    "a key that is a list": ("macaron: true", "? [a, b]\n  : 1", "line 7: model: a key should be a name, got a list"),
    "a Python object": ("steps: 10", 'steps: !!python/object/apply:os.mkdir ["made"]', "line 9: training.steps: the tag !!python/object/apply:os.mkdir is not allowed; write a plain value"),
    "a tag": ("steps: 10", 'steps: !!int "10"', "line 9: training.steps: the tag !!int is not allowed; write a plain value"),
    "heads that do not divide": ("num_heads: 4", "num_heads: 5", "line 4: model.num_heads: hidden_size 64 is not divisible by num_heads 5; the nearest hidden sizes are 60 and 65"),
    "top_k 0": ("  macaron: true", "  attention:\n    top_k: 0", "line 8: model.attention.top_k: input should be greater than 0, got 0"),
    "top_k above seq_length": ("  macaron: true", "  attention:\n    top_k: 33", "line 8: model.attention.top_k: top_k 33 is above seq_length 32; use null for dense attention"),
    "an impossible batch": ("global_batch_size: 8", "global_batch_size: 7", "line 10: training.global_batch_size: global_batch_size 7 is not micro_batch_size 2 * some accumulation_steps * data_replicas 1; the nearest valid global_batch_size is 6 or 8"),
    "an impossible batch triple": ("steps: 10", "accumulation_steps: 3\n  steps: 10", "line 11: training.global_batch_size: global_batch_size 8 is not micro_batch_size 2 * accumulation_steps 3 * data_replicas 1; the nearest valid global_batch_size is 6"),
    "no batch size at all": ("  global_batch_size: 8\n  micro_batch_size: 2\n", "", "line 8: training.global_batch_size: give global_batch_size or micro_batch_size"),
    "more stages than layers": ("optimizer:", "parallel:\n  pipeline_stages: 8\noptimizer:", "line 13: parallel.pipeline_stages: 8 stages for the 7 layers of the model (4 blocks, the embedding and the head) would leave a stage empty"),
    "too many boundaries": ("optimizer:", "parallel:\n  boundaries: [3]\noptimizer:", "line 13: parallel.boundaries: boundaries [3] make 2 stages, but pipeline_stages is 1"),
    "a boundary beyond the layers": ("optimizer:", "parallel:\n  pipeline_stages: 2\n  boundaries: [7]\noptimizer:", "line 14: parallel.boundaries: boundaries [7] must rise strictly between 0 and 7, or a stage is empty"),
    "ZeRO 3 with stages": ("optimizer:", "parallel:\n  pipeline_stages: 2\n  zero_stage: 3\noptimizer:", "line 14: parallel.zero_stage: zero_stage 3 does not work with pipeline_stages 2; use zero_stage 0 or 1, or one stage"),
    "ZeRO 4": ("optimizer:", "parallel:\n  zero_stage: 4\noptimizer:", "line 13: parallel.zero_stage: input should be less than or equal to 3, got 4"),
    "true for a ZeRO stage": ("optimizer:", "parallel:\n  zero_stage: true\noptimizer:", "line 13: parallel.zero_stage: input should be a valid integer, got true"),
    "offload without ZeRO 2": ("optimizer:", "parallel:\n  offload: optimizer\noptimizer:", "line 13: parallel.offload: offload 'optimizer' needs zero_stage 2 or more, got 1"),
    "offload of weights with ZeRO 2": ("optimizer:", "parallel:\n  zero_stage: 2\n  offload: all\noptimizer:", "line 14: parallel.offload: offload 'all' needs zero_stage 3 or more, got 2"),
    "a DeepSpeed key of ours": ("optimizer:", "deepspeed:\n  fp16:\n    enabled: false\noptimizer:", "line 14: deepspeed.fp16.enabled: decided by precision; set that instead"),
    "another DeepSpeed key of ours": ("optimizer:", "deepspeed:\n  bf16:\n    check_grad_overflow: false\noptimizer:", "line 14: deepspeed.bf16.check_grad_overflow: decided by guard; set that instead"),
    "replicas to compare where none are alike": ("optimizer:", "  check_replicas: 5\nparallel:\n  zero_stage: 3\noptimizer:", "line 12: training.check_replicas: with parallel.zero_stage 3 no two ranks hold the same weights; leave it out"),
    "warm-up longer than the run": ("optimizer:", "schedule:\n  warmup_steps: 10\noptimizer:", "line 13: schedule.warmup_steps: warmup_steps 10 leaves none of the 10 training.steps"),
    "two shares": ("optimizer:", "data:\n  split: 99,1\noptimizer:", "line 13: data.split: split must be three shares such as '969,30,1', the first above 0, got '99,1'"),
    "shares that are no numbers": ("optimizer:", "data:\n  split: nan,1,1\noptimizer:", "line 13: data.split: split must be three shares such as '969,30,1', the first above 0, got 'nan,1,1'"),
    "a weight of nothing": ("optimizer:", "data:\n  train: {a: 0.5, b: 0}\noptimizer:", "line 13: data.train: the weight of b should be a number above 0, got 0"),
    "a weight that is no number": ("optimizer:", "data:\n  train:\n    a: half\noptimizer:", "line 13: data.train: the weight of a should be a number above 0, got half"),
    "an empty blend": ("optimizer:", "data:\n  train: {}\noptimizer:", "line 13: data.train: a blend needs at least one dataset, such as {data/code: 0.5}"),
    "a list of datasets": ("optimizer:", "data:\n  train: [a, b]\noptimizer:", "line 13: data.train: input should be the prefix of a dataset or a mapping of prefixes to weights, got ['a', 'b']"),
    "labels of an unknown dataset": ("optimizer:", "data:\n  train: a\n  labels: {b: c}\noptimizer:", "line 14: data.labels: b is in neither train nor valid: a"),
    "infilling without a tokenizer": ("optimizer:", "data:\n  fill_in_the_middle:\n    rate: 0.5\noptimizer:", "line 14: data.fill_in_the_middle.rate: needs the ids of data.tokenizer: set it"),
    "infilling with labels": ("optimizer:", "data:\n  train: a\n  tokenizer: t\n  labels: {a: b}\n  fill_in_the_middle: {rate: 1}\noptimizer:", "line 16: data.fill_in_the_middle.rate: moves tokens, but data.labels stand for tokens in their place: use one of the two"),
    "steps and epochs": ("  steps: 10", "  steps: 10\n  epochs: 2", "line 10: training.epochs: give either steps or epochs, not both"),
    "a packing of others": ("optimizer:", "data:\n  packing: packed\noptimizer:", "line 13: data.packing: input should be 'stream', 'until_overflow' or 'document', got 'packed'"),
    "valid and split": ("optimizer:", "data:\n  valid: x\n  split: 9,1,0\noptimizer:", "line 14: data.split: give either valid or split, not both"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "problem"), MISTAKES.values(), ids=MISTAKES.keys())
def test_one_mistake_gives_one_problem_with_its_line(old, new, problem):
    assert old in BASE
    Path("broken.yml").write_text(BASE.replace(old, new))
    assert message(["broken.yml"]) == f"broken.yml has 1 problem:\n  {problem}"
    assert not Path("made").exists()


LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
UNUSABLE = {
    "a tab": (b"model:\n\tnum_layers: 4\n", "line 2: found a tab; YAML is indented with spaces"),
    "a tab after a value": (b"model:\n  num_layers: 4\n\tseq_length: 3\n", "line 3: found a tab; YAML is indented with spaces"),
    "an open bracket": (b"model:\n  x: [1, 2\ny: 3\n", "line 3: not valid YAML: while parsing a flow sequence that starts on line 2, expected ',' or ']', but got ':'"),
    "an open quote": (b'model:\n  x: "abc\n', "line 3: not valid YAML: while scanning a quoted scalar that starts on line 2, found unexpected end of stream"),
    "two colons": (b"a: b: c\n", "line 1: not valid YAML: mapping values are not allowed here"),
    "an unknown alias": (b"model: *size\n", "line 1: not valid YAML: found undefined alias 'size'"),
    "a list at the top": (b"# x\n- model\n", "line 2: the top level should be a mapping of sections such as model:, got a list"),
    "a word at the top": (b"hello\n", "line 1: the top level should be a mapping of sections such as model:, got 'hello'"),
    "invalid UTF-8": (b"model:\n  x: \xff\n", "line 2: not UTF-8 text: byte 0xff; save the file as UTF-8"),
    "binary": (b"model: 1\n\x00\x01", "line 2: not a text file: it holds the control character 0x00"),
    "two documents": (b"model: {}\n---\nmodel: {}\n", "line 2: a second document starts here; keep one per file"),
    "aliases that explode": (LAUGHS.encode(), "line 1: more than 10000 values once its aliases (*name) are written out"),
    "an alias of itself": (b"model: &m [*m]\n", "line 1: nested too deeply once its aliases (*name) are written out"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "problem"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_file_that_is_no_configuration_gives_one_problem(data, problem):
    Path("broken.yml").write_bytes(data)
    started_at = time.monotonic()
    assert message(["broken.yml"]) == f"broken.yml has 1 problem:\n  {problem}"
    assert time.monotonic() - started_at < 5


@pytest.mark.parametrize("data", ["", "\n\n", "# only a comment\n", "---\n", "null\n"])
def test_an_empty_file_says_so(data):
    Path("broken.yml").write_text(data)
    expected = "broken.yml: this file is empty; it should hold sections such as model:"
    assert message(["broken.yml"]) == expected


def test_a_missing_file_names_the_one_that_was_meant():
    assert message(["bass.yml"]) == "bass.yml: no such file; did you mean base.yml?"
    assert message(["base"]) == "base: no such file; did you mean base.yml?"
    assert message(["no/such.yml"]) == "no/such.yml: no such file"


def test_a_directory_is_refused():
    Path("configs").mkdir()
    assert message(["configs"]) == "configs: this is a directory; name a YAML file in it"


def test_a_file_that_may_not_be_read_gives_the_reason():
    assert message(["base.yml/x"]) == "base.yml/x: cannot be read: not a directory"
    if os.geteuid() != 0:
        Path("base.yml").chmod(0)
        assert message(["base.yml"]) == "base.yml: cannot be read: permission denied"


def test_an_endless_or_huge_file_is_refused():
    Path("huge.yml").write_text("# comment\n" * 40_000)
    assert message(["huge.yml"]) == "huge.yml: this is no configuration: larger than 256 KiB"


def test_brackets_without_end_are_refused():
    Path("deep.yml").write_text("model: " + "[" * 20_000)
    assert message(["deep.yml"]) == "deep.yml: values are nested too deeply"


def test_all_problems_come_at_once_ordered_by_line():
    Path("broken.yml").write_text(
        BASE.replace("hidden_size: 64", "hidden_size: wide\n  num_layers: 4")
        .replace("  steps", "  step")
        .replace("  lr: 3e-4\n", "  eps: 1e-8\n")
    )
    # `steps` is not called missing as well: the misspelled key beside it means it.
    assert message(["broken.yml"]) == (
        "broken.yml has 4 problems:\n"
        "  line 3: model.hidden_size: input should be a valid integer, got 'wide'\n"
        "  line 4: model.num_layers: given twice, first on line 2; keep one\n"
        "  line 10: training.step: unknown key; did you mean 'steps'?\n"
        "  line 13: optimizer.lr: required option is missing: Peak learning rate."
    )


def test_contradictions_of_several_sections_come_at_once():
    Path("broken.yml").write_text(
        BASE.replace("num_heads: 4", "num_heads: 5") + "parallel:\n  boundaries: [1]\n"
    )
    lines = message(["broken.yml"]).splitlines()
    assert lines[0] == "broken.yml has 2 problems:"
    assert lines[1].startswith("  line 4: model.num_heads: ")
    assert lines[2].startswith("  line 15: parallel.boundaries: ")


def test_problems_of_several_sources_name_each_source():
    Path("more.yml").write_text("schedule:\n  warmup: 5\n")
    Path("broken.yml").write_text(BASE.replace("macaron: true", "macaron: no"))
    assert message(["broken.yml", "more.yml"], ("training.step=5",)) == (
        "the configuration has 3 problems:\n"
        "  broken.yml, line 7: model.macaron: input should be a valid boolean, got 'no'; use true or false\n"
        "  more.yml, line 2: schedule.warmup: unknown key; did you mean 'warmup_steps'?\n"
        "  --set training.step=5: training.step: unknown key; did you mean 'steps'?"
    )


def test_a_contradiction_points_at_the_source_that_decided():
    Path("more.yml").write_text("parallel:\n  pipeline_stages: 9\n")
    assert message(["base.yml", "more.yml"]).startswith(
        "more.yml has 1 problem:\n  line 2: parallel.pipeline_stages: 9 stages for the 7 layers"
    )


def test_a_replaced_section_leaves_no_place_behind():
    Path("number.yml").write_text("optimizer: 3\n")
    Path("again.yml").write_text("# fresh\noptimizer:\n  eps: 1e-8\n")
    assert message(["base.yml", "number.yml", "again.yml"]).startswith(
        "again.yml has 1 problem:\n  line 2: optimizer.lr: required option is missing"
    )


def test_several_unreadable_sources_are_all_reported():
    Path("tab.yml").write_text("model:\n\tx: 1\n")
    assert message(["tab.yml", "gone.yml"], ("steps",)) == (
        "the configuration has 3 problems:\n"
        "  tab.yml, line 2: found a tab; YAML is indented with spaces\n"
        "  gone.yml: no such file\n"
        "  --set steps: expected section.key=value, such as training.steps=100"
    )


OVERRIDES = {
    "training.step=5": "training.step: unknown key; did you mean 'steps'?",
    "trainig.steps=5": "trainig: unknown key; did you mean 'training'?",
    "lr=5": "lr: unknown key; `lr` belongs to `optimizer`",
    "training.steps.x=5": "training.steps: input should be a valid integer, got a mapping",
    "optimizer.lr=off": "optimizer.lr: input should be a valid number, got 'off'",
    "optimizer.lr=nan": "optimizer.lr: input should be a valid number, got 'nan'",
    "optimizer.lr=0": "optimizer.lr: input should be greater than 0, got 0",
    "model.macaron=": "model.macaron: input should be a valid boolean, got null",
    "model={macaron: 1, x: 2, x: 3}": "model.x: given twice; keep one",
}


@pytest.mark.parametrize(("override", "problem"), OVERRIDES.items(), ids=OVERRIDES.keys())
def test_a_wrong_override_is_named(override, problem):
    assert f"\n  --set {override}: {problem}" in message(["base.yml"], (override,))


@pytest.mark.parametrize("override", ["training.steps", "=5", "training.=5", ".steps=5", ""])
def test_an_override_without_key_and_value_shows_the_form(override):
    expected = f"--set {override}: expected section.key=value, such as training.steps=100"
    assert message(["base.yml"], (override,)) == expected


def test_an_override_that_is_no_yaml_is_named():
    assert message(["base.yml"], ("optimizer.betas=[1",)).startswith(
        "--set optimizer.betas=[1: not valid YAML: while parsing a flow sequence"
    )
