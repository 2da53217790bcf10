"""Documents are rearranged reversibly, as often as asked, and the same in every layout."""

import numpy as np
import pytest

from megatron_gptx.config.batch import IGNORE
from megatron_gptx.data.fill_in_the_middle import FillInTheMiddle
from megatron_gptx.data.gpt_dataset import GPTDataset, Shaping

PREFIX, MIDDLE, SUFFIX, END = 901, 902, 903, 900
INFILL = FillInTheMiddle(
    rate=1.0, spm_rate=0.5, prefix=PREFIX, middle=MIDDLE, suffix=SUFFIX, end_of_document=END
)


@pytest.fixture
def dataset(make_dataset):
    """Documents of consecutive ids, each ended by END."""
    lengths = np.random.default_rng(0).integers(1, 40, 60)
    return make_dataset([[*range(100, 100 + n), END] for n in lengths])


def read(dataset, infill, *, packing="document", positions=range(60)):
    shaping = Shaping(packing, fill_in_the_middle=infill)
    return GPTDataset(dataset, 40, seed=5, shaping=shaping).read_samples(positions)


def documents(samples):
    """Return the ids of each sample that holds one document."""
    for tokens, labels in zip(samples.tokens, samples.labels, strict=True):
        inputs = (labels != IGNORE).sum()
        yield [*tokens[:inputs].tolist(), int(labels[inputs - 1])]


def restored(ids):
    """Return (order, text) of a rearranged document."""
    assert ids[0] == PREFIX
    suffix, middle = ids.index(SUFFIX), ids.index(MIDDLE)
    first, second, third = ids[1:suffix], ids[suffix + 1 : middle], ids[middle + 1 :]
    if suffix > 1:
        return "PSM", first + third + second
    # PREFIX SUFFIX suffix MIDDLE prefix middle, or a PSM whose prefix is empty: both end so.
    return "SPM or PSM", third + second


def test_a_rearranged_document_holds_its_text_but_for_three_tokens_and_keeps_its_end(dataset):
    seen = set()
    for before, after in zip(
        documents(read(dataset, None)), documents(read(dataset, INFILL)), strict=True
    ):
        if len(before) < 5:
            assert after == before  # too short to have a middle
            continue
        assert len(after) == len(before)
        assert after[-1] == END
        order, text = restored(after[:-1])
        assert text == before[:-4]
        seen.add(order)
    assert seen == {"PSM", "SPM or PSM"}


def test_spm_puts_the_suffix_first(dataset):
    for ids in documents(read(dataset, INFILL._replace(spm_rate=1.0))):
        if len(ids) >= 5:
            assert ids[:2] == [PREFIX, SUFFIX]


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_the_rate_is_the_share_of_documents(make_dataset, rate):
    dataset = make_dataset([[*range(100, 120), END]] * 2000)
    changed = sum(
        PREFIX in ids
        for ids in documents(read(dataset, INFILL._replace(rate=rate), positions=range(2000)))
    )
    # 4 standard deviations of a binomial.
    assert abs(changed - 2000 * rate) <= 4 * (2000 * rate * (1 - rate)) ** 0.5


@pytest.mark.parametrize("packing", ["stream", "until_overflow", "document"])
def test_it_depends_on_the_position_alone(dataset, packing):
    together = read(dataset, INFILL, packing=packing, positions=np.arange(40))
    alone = read(dataset, INFILL, packing=packing, positions=[33])
    assert np.array_equal(together.tokens[33], alone.tokens[0])
    assert np.array_equal(together.labels[33], alone.labels[0])


@pytest.mark.parametrize("packing", ["stream", "until_overflow"])
def test_documents_are_not_mixed_inside_a_sample(dataset, packing):
    shaping = Shaping(packing, isolate_documents=True)
    before = GPTDataset(dataset, 40, seed=5, shaping=shaping).read_samples(range(30))
    shaping = shaping._replace(fill_in_the_middle=INFILL)
    after = GPTDataset(dataset, 40, seed=5, shaping=shaping).read_samples(range(30))
    assert np.array_equal(after.row_start, before.row_start)
    for row in range(30):
        # Ends of documents stay where they were: the parts of each were moved within it.
        ended = (before.tokens[row] == END) & (before.labels[row] == IGNORE)
        assert (after.tokens[row][ended] == END).all()
    assert (after.tokens == PREFIX).sum() > 30


def test_without_an_end_of_document_the_last_three_tokens_give_way(make_dataset):
    dataset = make_dataset([range(100, 120)])
    (ids,) = documents(read(dataset, INFILL._replace(end_of_document=None), positions=[0]))
    assert restored(ids)[1] == [*range(100, 117)]


def test_sentinels_may_be_larger_than_the_dataset_s_type(make_dataset):
    dataset = make_dataset([range(10)] * 3, dtype=np.uint8)
    ids = read(dataset, INFILL._replace(prefix=70_000), positions=range(3)).tokens
    assert (ids[:, 0] == 70_000).all()
