"""Text from checkpoints of any layout."""

import io
import json
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch

from megatron_gptx.checkpoint.choice import choose_checkpoint
from megatron_gptx.config.errors import UserError
from megatron_gptx.config.output import GenerationConfig
from megatron_gptx.config.schema import Config
from megatron_gptx.inference.generate import complete, generate, join, known_ids, main
from megatron_gptx.inference.load import load_model
from megatron_gptx.launcher.command_line import encode
from megatron_gptx.model.sequential import GPTXSequential
from megatron_gptx.tokenizer.build import load_tokenizer
from megatron_gptx.tokenizer.train import train_byte_level_bpe
from tests.vocabularies import KINDS, write_vocabulary

PROMPT = [3, 5, 7, 9]
MODELS = {
    "plain": {},
    "tied head, learned positions": {"model__tied_head": True, "model__position": "learned"},
}
# More rows than bytes have ids.
SPARE = {"model__vocab_size": 300, "data__tokenizer": "bytes"}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(finished):
    """Return what trains a model for a few steps with some number of stages."""

    def trained(model: str = "plain", stages: int = 1) -> Config:
        return finished(
            # After four steps ReZero's gates are almost closed: no token would see another.
            model__residual="pre_norm",
            **(MODELS | {"spare rows": SPARE})[model],
            parallel__pipeline_stages=stages,
            training__steps=4,
        ).config

    return trained


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """Make a tokenizer whose ids, bytes above all, exceed the vocabulary of the tiny model."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_byte_level_bpe(["a b c"], vocab_size=257))
    return path


def network(config: Config) -> GPTXSequential:
    checkpoint = choose_checkpoint(config.output.run_dir, None)
    return load_model(config, checkpoint, torch.device("cpu"))


def continued(config: Config, prompt: list[int] = PROMPT, **options: object) -> list[int]:
    model = network(config)
    wanted = GenerationConfig.model_validate({"max_new_tokens": 40, **options})
    return list(generate(model, prompt, wanted, config.model.seq_length))


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_of_any_number_of_stages_writes_the_same_text(trained, model):
    one = continued(trained(model), seed=1)
    assert len(one) == 40
    assert continued(trained(model, 2), seed=1) == one
    if model == "plain":
        assert continued(trained(model, 3), seed=1) == one


def test_what_is_written_depends_on_what_was_learned(trained):
    config = trained()
    untrained = GPTXSequential(config.model, seed=config.training.seed).eval()
    options = GenerationConfig(max_new_tokens=40, seed=1)
    fresh = list(generate(untrained, PROMPT, options, config.model.seq_length))
    assert fresh != continued(config, seed=1)


@pytest.mark.parametrize("model", MODELS)
def test_a_greedy_token_is_the_likeliest_one_after_all_before_it(trained, model):
    config = trained(model)
    new = continued(config, temperature=0, max_new_tokens=20)
    likeliest = network(config).logits(torch.tensor([PROMPT + new]))[0].argmax(-1).tolist()
    assert likeliest[len(PROMPT) - 1 : -1] == new


def test_greedy_text_is_always_the_same_whatever_the_seed(trained):
    first = continued(trained(), temperature=0, seed=1)
    assert continued(trained(), temperature=0, seed=2) == first


def test_the_likeliest_of_one_is_greedy(trained):
    assert continued(trained(), top_k=1) == continued(trained(), temperature=0)


def test_samples_depend_on_the_seed_alone(trained):
    first = continued(trained(), seed=1)
    assert continued(trained(), seed=1) == first
    assert continued(trained(), seed=2) != first


@pytest.mark.parametrize("model", MODELS)
def test_the_window_slides_when_the_text_outgrows_it(trained, model):
    config = trained(model)
    window = config.model.seq_length
    prompt = [(3 * i) % 64 for i in range(window + 7)]
    new = continued(config, prompt, temperature=0, max_new_tokens=20)
    assert len(new) == 20
    # Each token is what the last `window` tokens alone lead to.
    assert continued(config, prompt[-window:], temperature=0, max_new_tokens=20) == new


@pytest.mark.parametrize("model", MODELS)
def test_the_whole_window_is_used(trained, model):
    config = trained(model)
    window = config.model.seq_length
    prompt = [(3 * i) % 64 for i in range(window)]
    whole, half = (
        continued(config, ids, seed=1, max_new_tokens=window // 2)
        for ids in (prompt, prompt[window // 2 :])
    )
    assert whole != half


def test_no_more_tokens_come_than_asked_for(trained):
    assert len(continued(trained(), max_new_tokens=3)) == 3


def test_without_a_table_of_positions_the_window_may_be_longer_than_in_training(trained):
    config = trained()
    longer = config.model.model_copy(update={"seq_length": 128})
    long = config.model_copy(update={"model": longer})
    prompt = [(3 * i) % 64 for i in range(120)]
    seen, cut = (continued(one, prompt, seed=1, max_new_tokens=8) for one in (long, config))
    assert seen != cut
    # And it is what the whole text leads to.
    greedy = continued(long, prompt, temperature=0, max_new_tokens=8)
    likeliest = network(long).logits(torch.tensor([prompt + greedy]))[0].argmax(-1).tolist()
    assert likeliest[len(prompt) - 1 : -1] == greedy


def test_a_table_of_positions_keeps_its_length(trained):
    config = trained("tied head, learned positions")
    model = config.model.model_copy(update={"seq_length": 128})
    with pytest.raises(
        UserError, match=r"model\.seq_length: 32 in the checkpoint, 128 in the conf"
    ):
        network(config.model_copy(update={"model": model}))


def with_tokenizer(config: Config, path: Path | None) -> Config:
    data = config.data.model_copy(update={"tokenizer": path and str(path)})
    return config.model_copy(update={"data": data})


def test_a_prompt_outside_the_vocabulary_is_a_message(trained, tokenizer):
    config = with_tokenizer(trained(), tokenizer)
    with pytest.raises(UserError, match=r"gives the id \d+, but model.vocab_size is 64; use the"):
        list(complete(config, ["z"]))


def test_generation_needs_a_tokenizer(trained):
    with pytest.raises(
        UserError, match=r"run\S*/tokenizer is not there, and data.tokenizer is not"
    ):
        list(complete(with_tokenizer(trained(), None), ["x"]))


@pytest.fixture
def generate_py(monkeypatch, capsys):
    """Run generate.py and return its status, stdout and stderr."""

    def generate_py(config: Config, *arguments: str) -> tuple[int, str, str]:
        words = ["generate.py", "--config", encode(config), *arguments]
        monkeypatch.setattr("sys.argv", words)
        return main(), *capsys.readouterr()

    return generate_py


def test_text_continues_the_prompt_on_the_screen_and_in_a_file(
    trained, tokenizer, tmp_path, generate_py
):
    config = with_tokenizer(trained(), tokenizer)
    output = tmp_path / "sample.txt"
    # The first ids of a byte-level vocabulary are the end of a document and "!" onwards.
    status, shown, _ = generate_py(config, "--prompt", '!"', "--output", str(output))
    assert status == 0
    assert shown.startswith('!"')
    assert output.read_text() == shown


def test_an_empty_prompt_starts_a_document(trained, tokenizer):
    (text,) = complete(with_tokenizer(trained(), tokenizer), [""])
    assert isinstance(text, str)


def test_a_file_that_cannot_be_written_is_a_message(trained, tokenizer, tmp_path, generate_py):
    config = with_tokenizer(trained(), tokenizer)
    status, _, said = generate_py(config, "--prompt", "!", "--output", str(tmp_path / "no" / "x"))
    assert status == 2
    *notes, message = said.splitlines()
    assert all(": " in note for note in notes)  # which kernels were chosen, and why
    assert message == f"--output {tmp_path}/no/x cannot be written: No such file or directory"


def test_a_run_without_a_checkpoint_is_a_message(trained, tokenizer, tmp_path, generate_py):
    output = trained().output.model_copy(update={"run_dir": str(tmp_path)})
    config = with_tokenizer(trained(), tokenizer).model_copy(update={"output": output})
    status, _, said = generate_py(config, "--prompt", "!")
    assert status == 2
    assert said.startswith(f"{tmp_path} holds no checkpoint yet (looked for in ")


def test_a_damaged_weights_file_is_a_message(trained, tokenizer, tmp_path, generate_py):
    shutil.copytree(trained().output.run_dir, tmp_path / "run")
    output = trained().output.model_copy(update={"run_dir": str(tmp_path / "run")})
    config = with_tokenizer(trained(), tokenizer).model_copy(update={"output": output})
    (damaged,) = (tmp_path / "run").glob("checkpoints/*/weights/layer-003.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    status, _, said = generate_py(config, "--prompt", "!")
    assert status == 2
    assert said.count("layer-003.safetensors has ") == 1


def test_another_model_is_a_message(trained, tokenizer, generate_py):
    model = trained().model.model_copy(update={"num_layers": 5})
    config = with_tokenizer(trained(), tokenizer).model_copy(update={"model": model})
    status, _, said = generate_py(config, "--prompt", "!")
    assert status == 2
    assert "model.num_layers: 4 in the checkpoint, 5 in the configuration" in said


def test_the_run_brings_its_tokenizer(trained, generate_py):
    config = with_tokenizer(trained("spare rows"), None)
    status, shown, _ = generate_py(config, "--prompt", "\x03\x05")
    assert status == 0
    assert shown.startswith("\x03\x05")


def test_another_tokenizer_than_the_run_s_is_named_and_not_used(trained, tokenizer, generate_py):
    config = trained("spare rows")
    _, own, _ = generate_py(config, "--prompt", "a")
    status, shown, said = generate_py(with_tokenizer(config, tokenizer), "--prompt", "a")
    assert (status, shown) == (0, own)
    assert f"data.tokenizer {tokenizer} is another tokenizer than the run was trained with" in said
    gone = with_tokenizer(config, tokenizer.with_name("gone.json"))
    assert generate_py(gone, "--prompt", "a")[:2] == (0, own)


def test_ids_that_the_tokenizer_does_not_know_are_never_written(trained, generate_py):
    config = trained("spare rows")
    # So hot that every row is as likely as any other: one in seven would be none of a byte.
    hot = config.generation.model_copy(update={"temperature": 1e3, "max_new_tokens": 60})
    status, shown, _ = generate_py(config.model_copy(update={"generation": hot}), "--prompt", "a")
    assert status == 0
    assert len(shown) > 30


def test_a_gap_in_a_vocabulary_is_never_written(tmp_path):
    known = known_ids(load_tokenizer(write_vocabulary("tiktoken", tmp_path)), 50300)
    assert known.nonzero()[:, 0].tolist() == [*range(263), 50256]
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 1, "b": 3}))
    words.save(str(tmp_path / "tokenizer.json"))
    known = known_ids(load_tokenizer(tmp_path / "tokenizer.json"), 5)
    assert known.tolist() == [False, True, False, True, False]


def test_a_second_file_for_the_output_is_refused(trained, generate_py):
    words = ("--prompt", "a", "--output", "x", "--output", "y")
    status, _, said = generate_py(trained("spare rows"), *words)
    assert (status, "argument --output: given twice, with x and y" in said) == (2, True)


@pytest.mark.parametrize("kind", [*KINDS, "bytes"])
def test_a_continuation_keeps_the_space_before_its_first_word(tmp_path, kind):
    tokenizer = load_tokenizer(write_vocabulary(kind, tmp_path))
    prompt = "the model learns a"
    prompt_ids = tokenizer.encode(prompt)
    new_ids = tokenizer.encode(f"{prompt} list")[len(prompt_ids) :]
    assert join(tokenizer, prompt, prompt_ids, new_ids) == f"{prompt} list"
    assert join(tokenizer, prompt, prompt_ids, []) == prompt


@pytest.mark.parametrize("kind", [*KINDS, "bytes"])
def test_a_prompt_keeps_its_last_space_and_no_second_one_is_written(tmp_path, kind):
    tokenizer = load_tokenizer(write_vocabulary(kind, tmp_path))
    prompt, prompt_ids = "one list ", tokenizer.encode("one list ")
    assert join(tokenizer, prompt, prompt_ids, []) == prompt
    before = tokenizer.encode("one list")
    word = tokenizer.encode("one list and")[len(before) :]
    if prompt_ids == before:  # it does not know of the space
        assert join(tokenizer, prompt, prompt_ids, word) == "one list and"


def test_what_ends_a_document_is_what_the_data_said_when_training_began(trained, tmp_path):
    config = trained("spare rows")
    run = tmp_path / "run"
    shutil.copytree(config.output.run_dir, run)
    greedy = config.generation.model_copy(update={"temperature": 0.0})
    output = config.output.model_copy(update={"run_dir": str(run)})
    config = config.model_copy(update={"generation": greedy, "output": output})
    ids = continued(config, [3, 5], temperature=0)
    end = ids[9]
    before = ids[: ids.index(end)]
    manifest = run / "tokenizer" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "ends": [end]}))
    assert list(complete(config, ["\x03\x05"])) == [bytes([3, 5, *before]).decode(errors="replace")]


def test_every_prompt_is_continued_as_if_it_were_the_only_one(trained, tmp_path, generate_py):
    config, output = trained("spare rows"), tmp_path / "both.txt"
    alone = [generate_py(config, "--prompt", prompt)[1] for prompt in ("a", "b")]
    status, shown, _ = generate_py(
        config, "--prompt", "a", "--prompt", "b", "--output", str(output)
    )
    assert status == 0
    assert shown == f"[1 of 2]\n{alone[0]}[2 of 2]\n{alone[1]}"
    assert output.read_bytes().decode() == shown


def test_a_screen_that_lacks_a_character_shows_its_number(trained, monkeypatch):
    config = trained("spare rows")
    screen = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("sys.argv", ["generate.py", "--config", encode(config), "--prompt", "é漢"])
    assert main() == 0
    assert screen.buffer.getvalue().startswith("é\\u6f22".encode("latin-1"))


def test_a_prompt_that_is_cut_is_named(trained, generate_py):
    config = trained("spare rows")
    _, _, said = generate_py(config, "--prompt", "\x03" * 40)
    assert (
        "the prompt has 40 tokens, and the model sees the last 32: --set model.seq_length=168"
        in (said)
    )
    assert "the prompt has" not in generate_py(config, "--prompt", "\x03" * 32)[2]
    model = config.model.model_copy(update={"seq_length": 168})
    longer = config.model_copy(update={"model": model})
    status, _, said = generate_py(longer, "--prompt", "\x03" * 40)
    assert status == 0
    assert "the prompt has" not in said


def test_an_empty_prompt_without_an_end_of_document_is_a_message(trained, tmp_path):
    vocabulary = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 1, "b": 2}))
    vocabulary.save(str(tmp_path / "tokenizer.json"))
    config = with_tokenizer(trained(), tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="an empty prompt begins behind the end of a document, but"):
        list(complete(config, ["a", ""]))
    assert len(list(complete(config, ["a"]))) == 1


def test_a_model_whose_weights_are_not_finite_is_a_message(trained, tmp_path):
    config = trained("spare rows")
    model = network(config)
    with torch.no_grad():
        model.layers[-1].weight.fill_(float("nan"))
    with pytest.raises(UserError, match="the model's largest logit is nan"):
        list(generate(model, PROMPT, GenerationConfig(temperature=0.0), 32))


def test_the_first_word_that_is_written_is_none_of_the_prompt(trained, tmp_path):
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({f"w{number}": number for number in range(64)}, "w0")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    (text,) = complete(with_tokenizer(trained(), tmp_path / "tokenizer.json"), ["w3 w5"])
    assert text.startswith("w3 w5 ")
    assert len(text.split()) > 3
    assert {*text.split()} <= {*words.get_vocab()}
