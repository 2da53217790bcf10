"""Everything about the data that can be known to be wrong before a process starts."""

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.schema import Config
from megatron_gptx.data.build import build_datasets
from megatron_gptx.data.indexed_dataset import IndexedDataset
from megatron_gptx.data.verify import Expected, quick_problems
from megatron_gptx.tokenizer.build import load_tokenizer

_REMEDY = "raise model.vocab_size above it, or use the dataset of this model's tokenizer"


def check_datasets(config: Config) -> None:
    """Raise one error with everything that is wrong with the data of a run.

    Files are opened and validated, every part must hold at least one sample, the tokenizer must
    exist and be the one that the datasets were made with, and no id may lie outside the model's
    vocabulary. The largest id is taken from the dataset's manifest; without one, 4 million tokens
    spread over the file are read, and the loader looks at every other one as it comes.

    Raises:
        UserError: the problems, one per line.
    """
    data, problems = config.data, []
    try:
        build_datasets(data, seq_length=config.model.seq_length, seed=config.training.seed)
    except UserError as error:
        problems.append(str(error))

    tokenizer_sha256 = None
    if data.tokenizer is not None:
        try:
            tokenizer = load_tokenizer(data.tokenizer)
            vocab_size, tokenizer_sha256 = tokenizer.vocab_size, tokenizer.fingerprint
            if vocab_size > config.model.vocab_size:
                problems.append(
                    f"{data.tokenizer}: its vocabulary of {vocab_size} does not fit into "
                    f"model.vocab_size {config.model.vocab_size}; set that to at least {vocab_size}"
                )
        except UserError as error:
            problems.append(str(error))

    for prefix in {**data.train_weights, **data.valid_weights}:
        try:
            expected = Expected(config.model.vocab_size, tokenizer_sha256, _REMEDY)
            problems += quick_problems(IndexedDataset(prefix), expected)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
