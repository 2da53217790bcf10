"""SentencePiece, tiktoken, GPT-2 and bytes: the same rules as for a tokenizer.json."""

import base64
import io
import json

import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.tokenizer.build import load_tokenizer
from megatron_gptx.tokenizer.engine import choose_engine
from megatron_gptx.tokenizer.train import train_byte_level_bpe

TEXTS = ["the cat sat on the mat", " \n\t x", "é 漢字 \U0001f600", "a\x00b", "<|endoftext|>"]
CORPUS = ["the cat sat on the mat and the dog", "one two three four five", "é 漢字 x"] * 20


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    """Make GPT-2's two files, with the end of a document last, as there."""
    folder = tmp_path_factory.mktemp("gpt2")
    content = json.loads(train_byte_level_bpe(CORPUS, vocab_size=300))["model"]
    words = [word for word in content["vocab"] if word != "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate([*words, "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [" ".join(pair) for pair in content["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    return folder


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """Make a .tiktoken file of the bytes and a few words."""
    path = tmp_path_factory.mktemp("tiktoken") / "r50k_base.tiktoken"
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b"at", b" c", b" cat"]
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    path.write_bytes(b"\n".join(lines))
    return path


@pytest.fixture(scope="session")
def pieces(tmp_path_factory):
    """Train a SentencePiece model with byte fallback."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is an extra")
    path = tmp_path_factory.mktemp("sentencepiece") / "x.model"
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(params=["gpt2", "ranks", "bytes"])
def tokenizer(request):
    """Open each vocabulary that can encode every text."""
    if request.param == "bytes":
        return load_tokenizer("bytes")
    path = request.getfixturevalue(request.param)
    return load_tokenizer(path / "vocab.json" if path.is_dir() else path)


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_comes_back_and_stays_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.end_of_document not in ids
    batch = tokenizer.encode_batch([text, "", "x"])
    assert batch.ids.tolist() == ids + tokenizer.encode("x")
    assert batch.lengths.tolist() == [len(ids), 0, 1]


def test_the_end_of_a_document_is_a_special_token_inside_the_vocabulary(tokenizer):
    end = tokenizer.end_of_document
    assert end < tokenizer.vocab_size
    assert tokenizer.decode([end]) == "<|endoftext|>"
    assert "<|endoftext|>" in tokenizer.special_tokens
    assert len(tokenizer.fingerprint) == 64


def test_an_engine_is_found_for_each(tokenizer):
    engine, fast = choose_engine(tokenizer, iter(CORPUS))
    assert fast == engine.name.startswith("gigatoken")
    assert (engine.reason is None) == fast


def test_special_tokens_can_be_kept(gpt2, ranks):
    for path in (gpt2 / "vocab.json", ranks):
        tokenizer = load_tokenizer(path, special_tokens_as_text=False)
        assert tokenizer.encode("a<|endoftext|>")[-1] == tokenizer.end_of_document
        choose_engine(tokenizer, iter(CORPUS))
    with pytest.raises(UserError, match="can only be text"):
        load_tokenizer("bytes", special_tokens_as_text=False)


def test_merges_may_lie_elsewhere(gpt2, tmp_path):
    moved = tmp_path / "m.txt"
    moved.write_text((gpt2 / "merges.txt").read_text())
    ids = load_tokenizer(gpt2 / "vocab.json", merges=moved).encode("the cat")
    assert ids == load_tokenizer(gpt2 / "vocab.json").encode("the cat")
    moved.write_text("no merges\nx y z")
    with pytest.raises(UserError, match=r"vocab\.json: not a vocabulary with .*m\.txt"):
        load_tokenizer(gpt2 / "vocab.json", merges=moved)


def test_a_folder_stands_for_its_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text(train_byte_level_bpe(["a"], vocab_size=257))
    assert load_tokenizer(tmp_path).vocab_size == 257


def test_the_ranks_are_those_of_tiktoken(ranks):
    tokenizer = load_tokenizer(ranks)
    assert tokenizer.encode("the cat") == [257, 260]
    assert tokenizer.end_of_document == 50256
    assert tokenizer.vocab_size == 50257


def test_a_file_of_ranks_without_a_known_name_is_refused(tmp_path):
    path = tmp_path / "mine.tiktoken"
    path.write_text("")
    with pytest.raises(UserError, match=r"name must tell the encoding .*cl100k_base"):
        load_tokenizer(path)
    path = path.rename(tmp_path / "cl100k_base.tiktoken")
    path.write_text("no ranks here")
    with pytest.raises(UserError, match="not a file of tiktoken's ranks"):
        load_tokenizer(path)


def test_a_sentencepiece_model_gives_its_own_ids(pieces):
    tokenizer = load_tokenizer(pieces)
    ids = tokenizer.encode("the cat 漢字")
    assert tokenizer.decode(ids) == "the cat 漢字"
    assert tokenizer.encode_batch(["the cat 漢字", ""]).lengths.tolist() == [len(ids), 0]
    assert tokenizer.special_tokens == {"<s>", "</s>"}
    assert tokenizer.end_of_document == 2
    assert tokenizer.end_of_document not in tokenizer.encode("a</s>b")
    engine, fast = choose_engine(tokenizer, iter(CORPUS))
    assert fast == engine.name.startswith("gigatoken"), engine


def test_a_sentencepiece_model_is_refused_where_it_cannot_serve(pieces, tmp_path):
    with pytest.raises(UserError, match="no token '<none>'"):
        _ = load_tokenizer(pieces, end_of_document_name="<none>").end_of_document
    with pytest.raises(UserError, match="reads no special token from text"):
        load_tokenizer(pieces, special_tokens_as_text=False)
    (tmp_path / "bad.model").write_bytes(b"\x00junk")
    with pytest.raises(UserError, match=r"bad\.model: not a SentencePiece model"):
        load_tokenizer(tmp_path / "bad.model")


@pytest.mark.parametrize(
    ("name", "package"), [("x.model", "sentencepiece"), ("x.tiktoken", "tiktoken")]
)
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, name, package):
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=f"needs the package {package}"):
        load_tokenizer(tmp_path / name)
