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
rotary-pct: 0.5
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
    message = "theirs.yml:9: rotary_pct: 0.5: no option here"
    assert f"not translated: {message}" in capsys.readouterr().err
    assert f"#   {message}\n" in Path("ours.yml").read_text()


def test_what_it_still_lacks_is_said_and_gives_status_1(theirs, capsys):
    assert main([theirs, "--output", "ours.yml"]) == 1
    error = capsys.readouterr().err
    assert "before it can run:" in error
    assert "model.vocab_size: required option is missing" in error


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
