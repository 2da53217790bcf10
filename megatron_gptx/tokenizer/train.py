"""Vocabularies learned from text."""

from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from megatron_gptx.config.errors import UserError

END_OF_DOCUMENT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257  # every byte, and the end of a document


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
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"vocab_size {vocab_size} is too small: 256 bytes and {END_OF_DOCUMENT} take "
            f"{SMALLEST_VOCABULARY}"
        )
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
