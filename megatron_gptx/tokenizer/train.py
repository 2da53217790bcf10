"""Vocabularies learned from text."""

from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from megatron_gptx.config.errors import UserError

END_OF_DOCUMENT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257  # every byte, and the end of a document
UNKNOWN = "[UNK]"


def train_byte_level_bpe(texts: Iterable[str], *, vocab_size: int, min_frequency: int = 2) -> str:
    """Return the tokenizer.json of a byte-level BPE learned from texts.

    Every text can be encoded and is decoded to itself. The same texts give the same bytes. Ids:
    the end of a document is 0, then come the 256 bytes, then merges in the order learned.

    Args:
        texts: the training texts, read once.
        vocab_size: ids at most; fewer where the texts offer no more merges.
        min_frequency: how often a pair must occur to be merged.

    Raises:
        UserError: vocab_size has no room for all bytes.

    Source: Sennrich et al. 2016, arXiv:1508.07909; bytes instead of characters: Radford et al.
    2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
    """
    _check_size(vocab_size, SMALLEST_VOCABULARY)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str(pretty=True) + "\n"


def train_wordpiece(texts: Iterable[str], *, vocab_size: int, min_frequency: int = 2) -> str:
    """Return the tokenizer.json of a WordPiece vocabulary learned from texts.

    Words are split at white space and punctuation, so white space itself is lost, and a character
    that the texts do not show becomes [UNK]. The library breaks ties at random: the same texts may
    give another vocabulary. Ids: the end of a document is 0, [UNK] is 1.

    Args:
        texts: the training texts, read once.
        vocab_size: ids at most.
        min_frequency: how often a pair must occur to be merged.

    Raises:
        UserError: vocab_size has no room for the special tokens and the characters of the texts.

    Source: Schuster and Nakajima 2012, "Japanese and Korean Voice Search"; Devlin et al. 2018,
    arXiv:1810.04805.
    """
    _check_size(vocab_size, 3)
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[END_OF_DOCUMENT, UNKNOWN],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The library takes every character, whatever it was asked.
    _check_size(vocab_size, tokenizer.get_vocab_size(), "the characters and special tokens")
    return tokenizer.to_str(pretty=True) + "\n"


def train_unigram(texts: Iterable[str], *, vocab_size: int) -> str:
    """Return the tokenizer.json of a Unigram language model's vocabulary learned from texts.

    It works on bytes, so that every text can be encoded and is decoded to itself. The library
    breaks ties at random: the same texts may give another vocabulary. Ids: the end of a document is
    0, the unknown piece, which no text gives, is 1.

    Args:
        texts: the training texts, read once.
        vocab_size: ids at most.

    Raises:
        UserError: vocab_size has no room for all bytes.

    Source: Kudo 2018, arXiv:1804.10959.
    """
    _check_size(vocab_size, SMALLEST_VOCABULARY + 1)
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT, UNKNOWN],
        unk_token=UNKNOWN,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str(pretty=True) + "\n"


def _check_size(vocab_size: int, smallest: int, needed: str = "bytes and special tokens") -> None:
    if vocab_size < smallest:
        raise UserError(f"vocab_size {vocab_size} is too small: {needed} take {smallest} ids")
