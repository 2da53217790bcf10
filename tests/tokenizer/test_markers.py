"""No text becomes a marker, whatever the tokenizer's file says; ordinary tokens stay text."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from megatron_gptx.config.errors import UserError
from megatron_gptx.tokenizer.base import batch_of, marker_ids
from megatron_gptx.tokenizer.build import load_tokenizer
from megatron_gptx.tokenizer.engine import choose_engine, gigatoken_encoder
from megatron_gptx.tokenizer.markers import Spelling, is_barred, is_marker

MARKERS = ["<|fim_prefix|>", "<|im_start|>", "<fim_middle>", "[INST]", "[/INST]", "<EOT>", "</s>"]
MARKERS += ["<\uff5cfim\u2581begin\uff5c>", "<start_of_turn>", "<extra_id_0>", "<unused7>"]
ORDINARY = ["    ", "<td>", "</strong>", "<0x0A>", "\n\n", "[1]", "[a]", "hello", "<", "<||", "C++"]


@pytest.mark.parametrize("token", MARKERS)
def test_a_marker_is_known_by_its_shape(token):
    assert is_marker(token)


@pytest.mark.parametrize("token", ORDINARY)
def test_ordinary_added_tokens_are_no_markers(token):
    assert not is_marker(token)
    assert not is_barred(token)


def test_markers_that_the_file_does_not_call_special_stay_text(write_json):
    path = write_json(*MARKERS, *ORDINARY[:3])
    tokenizer = load_tokenizer(path)
    assert tokenizer.special_tokens == {"<|endoftext|>", *MARKERS}
    for marker in ("<|endoftext|>", *MARKERS):
        number = tokenizer.id_of(marker)
        ids = tokenizer.encode(f"a{marker}b")
        assert number not in ids
        assert tokenizer.decode(ids) == f"a{marker}b"
    assert len(marker_ids(tokenizer)) == 1 + len(MARKERS)
    # Runs of spaces and what else was added to write text by remain one token.
    for token in ORDINARY[:3]:
        assert len(tokenizer.encode(token)) == 1
        assert tokenizer.id_of(token) is None


def test_both_engines_leave_unmarked_markers_text(write_json):
    tokenizer = load_tokenizer(write_json(*MARKERS))
    pytest.importorskip("gigatoken", reason="gigatoken is an extra")
    texts = [f"the{marker} cat" for marker in ("<|endoftext|>", *MARKERS)]
    fast = gigatoken_encoder(tokenizer)(texts)
    assert fast.ids.tolist() == tokenizer.encode_batch(texts).ids.tolist()
    assert not set(fast.ids.tolist()) & set(marker_ids(tokenizer))


def test_markers_are_kept_where_that_is_asked_for(write_json):
    tokenizer = load_tokenizer(write_json("<|fim_prefix|>"), special_tokens_as_text=False)
    assert tokenizer.id_of("<|fim_prefix|>") in tokenizer.encode("a<|fim_prefix|>b")


@pytest.mark.parametrize("marker", ["<|endoftext|>", "<|fim_prefix|>", "</s>", "<fim_suffix>"])
def test_symbols_that_a_sentencepiece_model_s_user_defined_stay_text(train_pieces, marker):
    path = train_pieces(user_defined_symbols=[marker, "  ", "<td>"], eos_id=-1)
    tokenizer = load_tokenizer(path)
    number = tokenizer.id_of(marker)
    assert number is not None
    ids = tokenizer.encode(f"the{marker} cat")
    assert number not in ids
    assert tokenizer.decode(ids) == f"the{marker} cat"
    assert tokenizer.encode_batch([f"the{marker} cat", "x"]).ids.tolist()[: len(ids)] == ids
    assert tokenizer.decode([number]) == marker
    assert marker in tokenizer.special_tokens
    # What is not a marker stays one piece.
    assert len(tokenizer.encode("the<td>cat")) < len(tokenizer.encode("the<te>cat"))
    kept = load_tokenizer(path, special_tokens_as_text=False)
    assert number in kept.encode(f"the{marker} cat")
    engine, fast = choose_engine(tokenizer, iter([f"the{marker} cat"]))
    assert fast == engine.name.startswith("gigatoken")


def test_other_pieces_are_the_same_with_and_without_a_guard(train_pieces):
    import sentencepiece

    path = train_pieces(user_defined_symbols=["<|endoftext|>"])
    plain = sentencepiece.SentencePieceProcessor(model_file=str(path))
    text = "the cat é 漢字 \t <| one two"
    assert load_tokenizer(path).encode(text) == plain.encode(text)


@pytest.fixture
def words(tmp_path):
    """Make a Unigram vocabulary that holds the end of a document among its words, as T5's does."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -2.0) for letter in "\u2581abc</s>")]
    tokenizer = Tokenizer(models.Unigram(pieces, 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.save(str(tmp_path / "words.json"))
    return tmp_path / "words.json"


def test_a_model_that_finds_a_marker_among_its_words_writes_its_characters(words):
    tokenizer = load_tokenizer(words)
    end = tokenizer.end_of_document
    assert end == 1
    ids = tokenizer.encode("ab</s>c</s>")
    assert end not in ids
    assert [tokenizer.decode([number]) for number in ids[2:8]] == ["b", "<", "/", "s", ">", "c"]
    texts = ["a", "</s>", "", "b</s></s>a", "z"]
    batch = tokenizer.encode_batch(texts)
    assert batch.ids.tolist() == [number for text in texts for number in tokenizer.encode(text)]
    assert batch.lengths.tolist() == [len(tokenizer.encode(text)) for text in texts]
    assert 0 in tokenizer.encode("z")  # the unknown token is what text becomes
    assert choose_engine(tokenizer, iter(["a</s>"]))[1] is False


def test_a_marker_that_text_cannot_avoid_is_refused(write_json):
    tokenizer = load_tokenizer(write_json(), end_of_document_name="a")
    with pytest.raises(UserError, match="'a' cannot be a marker: text becomes it"):
        tokenizer.encode("abc")


def test_a_spelling_changes_nothing_but_markers():
    batch = batch_of([[1, 2], [], [9], [3, 9, 9]])
    spelled = Spelling({9: [5, 6]}).of(batch)
    assert spelled.ids.tolist() == [1, 2, 5, 6, 3, 5, 6, 5, 6]
    assert spelled.lengths.tolist() == [2, 0, 2, 5]
    assert np.array_equal(Spelling({8: [1]}).of(batch).ids, batch.ids)
