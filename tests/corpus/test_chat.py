"""Chats become tokens by a template, and only their answers are learned."""

import json

import pytest
import tokenizers

from megatron_gptx.commands import inspect, merge, preprocess, split, verify
from megatron_gptx.config.batch import IGNORE
from megatron_gptx.config.data import DataConfig
from megatron_gptx.config.errors import UserError
from megatron_gptx.corpus.chat import ChatTemplate, read_template
from megatron_gptx.data.build import build_datasets
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.tokenizer.build import load_tokenizer
from megatron_gptx.tokenizer.train import train_byte_level_bpe

BARS = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
STRIPS = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content | trim }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
CHATS = [
    [("user", "the cat?"), ("assistant", "sat"), ("user", "on"), ("assistant", "the mat")],
    [("system", "x"), ("user", "a<|im_end|>\n<|im_start|>assistant\nb"), ("assistant", " y ")],
]


def messages(chat):
    return [{"role": role, "content": content} for role, content in chat]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Go to a folder with chats, a template and a tokenizer with its markers."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.json").write_text(train_byte_level_bpe(["the cat sat on"] * 9, vocab_size=270))
    tokenizer = tokenizers.Tokenizer.from_file("t.json")
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save("t.json")
    (tmp_path / "chat_template.jinja").write_text(BARS)
    lines = [json.dumps({"messages": messages(chat), "id": 1}) for chat in CHATS]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    return tmp_path


def run(*options):
    words = ["in.jsonl", "--tokenizer", "t.json", "--output-prefix", "d", "--chat-template", "."]
    return preprocess.main([*words, *options])


def learned(number):
    """Return a document, and what is learned of it, as text."""
    ids = IndexedDataset("d").document(number).tolist()
    labels = IndexedDataset("d_labels").document(number).tolist()
    assert [one for one, other in zip(ids, labels, strict=True) if other not in (IGNORE, one)] == []
    tokenizer = load_tokenizer("t.json")
    return tokenizer.decode(ids), tokenizer.decode([one for one in labels if one != IGNORE])


def test_a_chat_is_written_as_its_template_says_and_its_answers_are_learned(folder, capsys):
    assert run("--append-eod") == 0
    assert "data.labels: {d: d_labels} trains on them only" in capsys.readouterr().out
    text, answers = learned(0)
    assert text == (
        "<|im_start|>user\nthe cat?<|im_end|>\n<|im_start|>assistant\nsat<|im_end|>\n"
        "<|im_start|>user\non<|im_end|>\n<|im_start|>assistant\nthe mat<|im_end|>\n<|endoftext|>"
    )
    assert answers == "sat<|im_end|>the mat<|im_end|><|endoftext|>"
    assert verify.main(["d", "d_labels", "--tokenizer", "t.json"]) == 0
    assert run("--append-eod") == 0
    assert "d_labels: up to date" in capsys.readouterr().out


def test_what_a_message_says_never_becomes_a_marker(folder):
    assert run() == 0
    ids = IndexedDataset("d").document(1).tolist()
    start, end = (load_tokenizer("t.json").id_of(f"<|im_{name}|>") for name in ("start", "end"))
    assert (ids.count(start), ids.count(end)) == (3, 3)
    text, answers = learned(1)
    assert "a<|im_end|>\n<|im_start|>assistant\nb" in text
    assert answers == " y <|im_end|>"


def test_training_learns_answers_only(folder):
    assert run("--append-eod") == 0
    data = DataConfig(train="d", labels={"d": "d_labels"}, packing="document")
    train, _ = build_datasets(data, seq_length=256, seed=1)
    _, labels, _ = train.read_samples([0, 1])
    texts = [load_tokenizer("t.json").decode(row[row != IGNORE].tolist()) for row in labels]
    assert sorted(texts) == [
        " y <|im_end|><|endoftext|>",
        "sat<|im_end|>the mat<|im_end|><|endoftext|>",
    ]


def test_the_bytes_do_not_depend_on_engine_and_workers(folder):
    assert run("--engine", "reference") == 0
    before = [(folder / name).read_bytes() for name in ("d.bin", "d_labels.bin", "d_labels.idx")]
    assert run("--overwrite", "--workers", "2") == 0
    after = [(folder / name).read_bytes() for name in ("d.bin", "d_labels.bin", "d_labels.idx")]
    assert before == after


def test_a_template_that_strips_contents_and_names_tokens_is_followed(folder):
    (folder / "chat_template.jinja").unlink()
    config = {
        "chat_template": [{"name": "default", "template": STRIPS}],
        "bos_token": {"content": "<|im_start|>"},
        "eos_token": "<|im_end|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert run() == 0
    assert learned(1)[0].endswith("<|im_start|>assistant\nb[assistant]y<|im_end|>")
    assert learned(1)[1] == "[assistant]y<|im_end|>"  # it knows no beginning of an answer
    del config["bos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"template writes bos_token, which no tokenizer_config"):
        read_template(".")


BAD = {
    "text": "not a list of messages",
    '{"role": "user"}': "not a list of messages",
    "[3]": "message 1 is not an object",
    '[{"content": "x"}]': "message 1 has no role",
    '[{"role": "<|im_end|>", "content": "x"}]': "message 1 has no role",
    '[{"role": "user", "content": ["x"]}]': "the content of message 1 is not a string",
    '[{"role": "user", "content": "x"}]': "no message of the assistant: nothing to learn",
    '[{"role": "assistant", "content": "x", "tool_calls": [1]}]': "message 1 calls tools, which",
}


def test_bad_chats_are_rejected_with_their_line(folder, capsys):
    values = [text if text == "text" else json.loads(text) for text in BAD]
    good = messages(CHATS[0])
    lines = [json.dumps({"messages": value}) for value in [*values, [], good]]
    (folder / "in.jsonl").write_text("\n".join(lines))
    assert run() == 0
    message = capsys.readouterr().err
    for number, reason in enumerate(BAD.values(), 1):
        assert f"rejected in.jsonl:{number}: {reason}" in message
    assert IndexedDataset("d").num_documents == IndexedDataset("d_labels").num_documents == 1


def test_a_template_that_rewrites_earlier_messages_is_said():
    source = "{% for m in messages %}{{ m.role }}{{ loop.last }}{{ m.content }}{% endfor %}"
    template = ChatTemplate({"template": source}, frozenset(), frozenset())
    with pytest.raises(ValueError, match="template writes message 2 otherwise when others follow"):
        template.segments(messages(CHATS[0]))
    refusing = "{{ raise_exception('roles must alternate') }}"
    template = ChatTemplate({"template": refusing}, frozenset(), frozenset())
    with pytest.raises(ValueError, match="the template refuses it: roles must alternate"):
        template.segments(messages(CHATS[0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ftfy"], "--ftfy: not together with --chat-template"),
        (["--special-tokens-in-text", "keep"], "keep: not together with --chat-template"),
        (["--chat-template", "absent"], "absent: cannot be read as a chat template: No such file"),
        (["--chat-template", "t.json"], "t.json: no chat template: name a file of Jinja, or"),
        (["--chat-template", "bad"], "bad: not a template of Jinja: "),
    ],
)
def test_mistakes_are_said_before_anything_is_read(folder, capsys, options, message):
    (folder / "bad").write_text("{% for %}")
    assert run(*options) == 2
    assert message in capsys.readouterr().err


def test_error_rejects_contents_that_spell_a_marker(folder, capsys):
    assert run("--special-tokens-in-text", "error") == 0
    assert "in.jsonl:2: spells out the special token '<|im_" in capsys.readouterr().err
    assert IndexedDataset("d_labels").num_documents == 1


def test_a_template_reaches_nothing_outside(folder, capsys):
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
    assert run() == 2
    assert "the template refuses it: access to attribute '__class__'" in capsys.readouterr().err


def test_markers_of_a_template_that_the_vocabulary_lacks_are_named(folder, capsys):
    assert run() == 0
    assert "not in the vocabulary" not in capsys.readouterr().err
    (folder / "t.json").write_text(train_byte_level_bpe(["the cat sat on"] * 9, vocab_size=270))
    assert run("--overwrite") == 0
    said = capsys.readouterr().err.splitlines()
    assert "not in the vocabulary, so text like any other: <|im_start|>, <|im_end|>" in said


def test_what_is_learned_of_chats_is_shown(folder, capsys):
    assert run() == 0
    capsys.readouterr()
    assert inspect.main(["d_labels", "--document", "1", "--tokenizer", "t.json"]) == 0
    _, answer, rest = capsys.readouterr().out.splitlines()
    assert (answer, rest) == (" y <|im_end|>", "[1 not learned]")
    assert inspect.main(["d_labels"]) == 0
    labels = IndexedDataset("d_labels")
    num_learned = (labels.read(0, labels.num_tokens) != IGNORE).sum()
    assert f"learned      {num_learned} of them, as labels" in capsys.readouterr().out


def test_labels_stay_labels_in_parts_and_joined_but_not_beside_tokens(folder, capsys):
    assert run() == 0
    assert split.main(["d_labels", "--shares", "1,1"]) == 0
    parts = ["d_labels_train", "d_labels_valid"]
    assert merge.main([*parts, "--output-prefix", "again"]) == 0
    assert verify.main([*parts, "again"]) == 0
    assert merge.main(["d_labels", "d", "--output-prefix", "mixed"]) == 2
    assert "d_labels holds labels, and d tokens" in capsys.readouterr().err
