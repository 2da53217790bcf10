"""The command writes a configuration that loads, and says what it left out."""

from pathlib import Path

import pytest

from megatron_gptx.commands.convert import main
from megatron_gptx.config.load import load

COMPLETE = """\
num-layers: 2
hidden-size: 64
num-attention-heads: 4
seq-length: 32
data-path: data/text
train-iters: 100
train_micro_batch_size_per_gpu: 2
optimizer: {type: adam, params: {lr: 0.001}}
log-interval: 5
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("theirs.yml").write_text(COMPLETE)
    return "theirs.yml"


def test_the_result_loads_and_names_what_was_left_out(theirs, capsys):
    assert main([theirs, "--vocab-size", "100", "--output", "ours.yml"]) == 0
    config = load([Path("ours.yml")])
    assert (config.model.vocab_size, config.data.train, config.data.split) == (
        128,
        "data/text",
        "969,30,1",
    )
    message = "theirs.yml:9: log_interval: what is logged changes nothing that is learned"
    error = capsys.readouterr().err
    assert error.startswith("parameters: 110,336, as there\n")
    assert f"not needed: {message}" in error
    assert f"#   {message}\n" in Path("ours.yml").read_text()


def test_another_model_gives_status_1_and_comes_before_all_else(theirs, capsys):
    Path("more.yml").write_text("pos-emb: rotary\nnorm: rmsnorm\n")
    assert main([theirs, "more.yml", "--vocab-size", "100", "--output", "ours.yml"]) == 1
    error = capsys.readouterr().err.splitlines()
    assert error == [
        "another model or run, since these settings have no counterpart here:",
        "  more.yml:1: pos_emb: 'rotary': model.position has no such value; alibi stands in for it",
        "  more.yml:2: norm: 'rmsnorm': model.residual has no such value",
        "parameters: 108,288, but 107,968 there",
        "not needed: theirs.yml:8: optimizer.type: as here",
        "not needed: theirs.yml:9: log_interval: what is logged changes nothing that is learned",
    ]
    head = Path("ours.yml").read_text().splitlines()[:6]
    assert head[2] == "# parameters: 108,288, but 107,968 there"
    assert head[4] == "# No counterpart here, so that this is another model or run:"
    assert load([Path("ours.yml")]).model.position == "alibi"


def test_a_script_s_arguments_are_unknown_until_it_is_started(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run.sh").write_text(
        "DATA=$5\nN=${N:-2}\nmegatron() { :; }\n"
        "python pretrain_gpt.py --num-layers $N --hidden-size 64 --num-attention-heads 4 \\\n"
        "  --seq-length 32 --train-samples 220_000_000 --global-batch-size 8 --lr 1e-3 \\\n"
        "  --lr-warmup-samples 80 --data-path $DATA --split 90,5,5 --vocab-size 100\n"
    )
    assert main(["run.sh", "--output", "ours.yml"]) == 1
    config = load([Path("ours.yml")])
    assert (config.model.num_layers, config.training.steps) == (2, 27_500_000)
    assert (config.schedule.warmup_steps, config.data.split) == (10, "90,5,5")
    assert config.checkpoint.keep_last is None
    error = capsys.readouterr().err.splitlines()
    assert error[1].startswith("  run.sh:6: data_path: '$5': ")


def test_files_of_two_tools_are_not_read_as_one(theirs, capsys):
    Path("run.sh").write_text("--num-layers 2\n")
    with pytest.raises(SystemExit) as ended:
        main([theirs, "run.sh"])
    assert ended.value.code == 2
    assert "translate one kind at a time" in capsys.readouterr().err
    assert main([theirs, "--from", "neox", "--vocab-size", "100"]) == 0


def test_unequal_lists_give_status_2_and_both_places(theirs, capsys):
    Path("more.yml").write_text("train-data-paths: [a, b]\ntrain-data-weights: [1]\n")
    with pytest.raises(SystemExit) as ended:
        main(["more.yml"])
    assert ended.value.code == 2
    assert "more.yml:2: train_data_weights has 1 entries" in capsys.readouterr().err


def test_what_it_still_lacks_is_said_and_gives_status_1(theirs, capsys):
    assert main([theirs, "--output", "ours.yml"]) == 1
    error = capsys.readouterr().err
    assert "before it can run:" in error
    assert "model.vocab_size: required option is missing" in error
    assert "--vocab-size gives model.vocab_size" in error


def test_the_tokenizer_says_the_vocabulary_s_size(theirs, capsys, tmp_path):
    from megatron_gptx.tokenizer.train import train_byte_level_bpe

    Path("tokenizer.json").write_text(train_byte_level_bpe(["a b c " * 20], vocab_size=260))
    Path("more.yml").write_text("tokenizer-type: HFTokenizer\nvocab-file: tokenizer.json\n")
    assert main([theirs, "more.yml", "--output", "ours.yml"]) == 0
    assert load([Path("ours.yml")]).model.vocab_size == 384


def test_without_an_output_it_prints_and_says_what_is_lacking_just_the_same(theirs, capsys):
    assert main([theirs, "--vocab-size", "100"]) == 0
    assert main([theirs]) == 1
    printed = capsys.readouterr()
    assert "num_layers: 2" in printed.out
    assert "before it can run:\nthe result has 1 problem" in printed.err


def test_an_existing_file_is_not_overwritten(theirs, capsys):
    Path("ours.yml").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main([theirs, "--output", "ours.yml"])
    assert ended.value.code == 2
    assert "ours.yml exists" in capsys.readouterr().err
    assert Path("ours.yml").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "just words"])
def test_a_file_without_settings_is_one_message(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run.sh").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["run.sh"])
    assert ended.value.code == 2
    assert "no settings found" in capsys.readouterr().err
