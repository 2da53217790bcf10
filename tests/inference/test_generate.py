"""Text from checkpoints of any layout."""

import shutil
from pathlib import Path

import pytest
import torch

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.output import GenerationConfig
from megatron_gptx.config.schema import Config
from megatron_gptx.inference.generate import complete, generate, main
from megatron_gptx.inference.load import load_model
from megatron_gptx.launcher.command import encode
from megatron_gptx.model.sequential import GPTXSequential
from megatron_gptx.tokenizer.train import train_byte_level_bpe
from tests.runs import tiny_config, train, write_corpus

PROMPT = [3, 5, 7, 9]
MODELS = {
    "plain": {},
    "tied head, learned positions": {"model__tied_head": True, "model__position": "learned"},
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train a model for a few steps with some number of stages; equal ones train once."""
    corpus = tmp_path_factory.mktemp("corpus")
    write_corpus(corpus)
    done: dict[tuple[str, int], Config] = {}

    def trained(model: str = "plain", stages: int = 1) -> Config:
        if (model, stages) not in done:
            config = tiny_config(
                corpus,
                tmp_path_factory.mktemp("run"),
                # After four steps ReZero's gates are almost closed: no token would see another.
                model__residual="pre_norm",
                **MODELS[model],
                parallel__pipeline_stages=stages,
                training__steps=4,
            )
            train(config)
            done[model, stages] = config
        return done[model, stages]

    return trained


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """Make a tokenizer whose ids, bytes above all, exceed the vocabulary of the tiny model."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_byte_level_bpe(["a b c"], vocab_size=257))
    return path


def continued(config: Config, prompt: list[int] = PROMPT, **options: object) -> list[int]:
    model, _ = load_model(config, torch.device("cpu"))
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
    network, _ = load_model(config, torch.device("cpu"))
    likeliest = network.logits(torch.tensor([PROMPT + new]))[0].argmax(-1).tolist()
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


def with_tokenizer(config: Config, path: Path | None) -> Config:
    data = config.data.model_copy(update={"tokenizer": path and str(path)})
    return config.model_copy(update={"data": data})


def test_a_prompt_outside_the_vocabulary_is_a_message(trained, tokenizer):
    config = with_tokenizer(trained(), tokenizer)
    with pytest.raises(UserError, match=r"gives the id \d+, but model.vocab_size is 64; use the"):
        complete(config, "z")


def test_generation_needs_a_tokenizer(trained):
    with pytest.raises(UserError, match=r"data.tokenizer is not set"):
        complete(with_tokenizer(trained(), None), "x")


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
    assert isinstance(complete(with_tokenizer(trained(), tokenizer), ""), str)


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
    assert said.startswith(f"{tmp_path} holds no checkpoint yet; train first")


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
