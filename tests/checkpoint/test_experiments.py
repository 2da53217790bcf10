"""One run is one experiment: what would mix two is refused, and what is harmless is said."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_gptx.checkpoint.changes import changed_options, mixed_experiments, same_evaluation
from megatron_gptx.checkpoint.manifest import Checkpoint, CheckpointError
from megatron_gptx.config.schema import Config
from megatron_gptx.data.fingerprint import fingerprints
from megatron_gptx.dataset.writer import IndexedDatasetWriter
from tests.runs import start, tiny_config, train, write_corpus

INFILL = {"data__fill_in_the_middle__rate": 0.5, "data__tokenizer": "bytes"}
MIXING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "training.seed": ({"training__seed": 1}, {"training__seed": 3}),
    "data.train": ({"data__train": "data/a"}, {"data__train": "data/b"}),
    "data.train weights": (
        {"data__train": {"a": 1.0, "b": 1.0}},
        {"data__train": {"a": 1.0, "b": 2.0}},
    ),
    "data.split": (
        {"data__valid": None, "data__split": "8,1,1"},
        {"data__valid": None, "data__split": "9,1,0"},
    ),
    "data.labels": ({"data__train": "a"}, {"data__train": "a", "data__labels": {"a": "b"}}),
    "data.packing": ({}, {"data__packing": "document"}),
    "data.isolate_documents": ({}, {"data__isolate_documents": True}),
    "data.mask_document_ends": ({}, {"data__mask_document_ends": True}),
    "data.fill_in_the_middle": ({"data__tokenizer": "bytes"}, INFILL),
    "data.tokenizer": ({"data__tokenizer": "a.json"}, {"data__tokenizer": "b.json"}),
}
HARMLESS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the rate": ({}, {"optimizer__lr": 0.5}),
    "validation data": ({}, {"data__valid": "elsewhere/valid"}),
    "the layout": ({}, {"parallel__pipeline_stages": 2, "precision": "bf16"}),
    "one dataset with a weight": ({"data__train": "a"}, {"data__train": {"a": 2.0}}),
    "weights of another sum": (
        {"data__train": {"a": 1.0, "b": 2.0}},
        {"data__train": {"a": 2.0, "b": 4.0}},
    ),
    "a path by a detour": ({"data__train": "data/a"}, {"data__train": "./data/b/../a"}),
    "shares of another sum": (
        {"data__valid": None, "data__split": "8,1,1"},
        {"data__valid": None, "data__split": "80,10,10"},
    ),
    "all documents": ({"data__valid": None}, {"data__valid": None, "data__split": "1,0,0"}),
    "ends that isolation masks": (
        {"data__isolate_documents": True},
        {"data__isolate_documents": True, "data__mask_document_ends": True},
    ),
    "names of what is not used": ({}, {"data__fill_in_the_middle__prefix": "<PRE>"}),
    "a tokenizer that is added": ({}, {"data__tokenizer": "b.json"}),
}


def pair(options: tuple[dict[str, Any], dict[str, Any]]) -> tuple[Checkpoint, Config]:
    """Return a checkpoint as it would be read, without fingerprints, and a configuration."""
    saved, wanted = (tiny_config(Path("corpus"), Path("run"), **each) for each in options)
    manifest = json.loads(json.dumps({"config": saved.model_dump()}))
    return Checkpoint(Path("step-00000002"), manifest), wanted


@pytest.mark.parametrize("name", MIXING)
def test_what_decides_the_samples_makes_another_experiment(name):
    checkpoint, config = pair(MIXING[name])
    option = name.partition(" ")[0]
    (said,) = mixed_experiments(checkpoint, config, None)
    assert said.startswith(f"{option}: ")
    assert " in the checkpoint, " in said
    checkpoint, config = pair((MIXING[name][0], MIXING[name][0]))
    assert mixed_experiments(checkpoint, config, None) == []


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_no_sample_is_the_same_experiment(name):
    checkpoint, config = pair(HARMLESS[name])
    assert mixed_experiments(checkpoint, config, None) == []
    assert changed_options(checkpoint, config) != []


def test_a_default_that_is_written_out_is_no_change():
    spelt = {"model__ffn_hidden_size": 64, "evaluation__batches": 16}
    checkpoint, config = pair(({"evaluation__batches": None}, spelt))
    assert changed_options(checkpoint, config) == []
    assert same_evaluation(checkpoint, config)


def test_a_harmless_change_is_said_with_its_effect():
    checkpoint, config = pair(({}, {"precision": "bf16", "data__valid": "other"}))
    assert changed_options(checkpoint, config) == [
        "data.valid corpus/valid -> other (validation losses cannot be compared with earlier ones)",
        "precision fp32 -> bf16 (losses are the same up to rounding)",
    ]


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({"optimizer__lr": 1.0, "evaluation__interval": 5, "data__prefetch": 0}, True),
        ({"data__valid": "other"}, False),
        ({"evaluation__batches": 3}, False),
    ],
    ids=str,
)
def test_validation_losses_are_compared_where_they_are_of_the_same_batches(options, same):
    checkpoint, config = pair(({}, options))
    assert same_evaluation(checkpoint, config) == same


@pytest.fixture
def data(tmp_path) -> Path:
    """Return a folder with small datasets of its own, which a test may change."""
    (tmp_path / "data").mkdir()
    write_corpus(tmp_path / "data")
    return tmp_path / "data"


def known(config: Config) -> Checkpoint:
    manifest = {"config": config.model_dump(), "data": fingerprints(config.data)}
    return Checkpoint(Path("step-00000002"), json.loads(json.dumps(manifest)))


def test_data_that_were_moved_are_the_same_data(data, tmp_path):
    checkpoint = known(tiny_config(data, tmp_path))
    data.rename(tmp_path / "moved")
    config = tiny_config(tmp_path / "moved", tmp_path)
    assert mixed_experiments(checkpoint, config, fingerprints(config.data)) == []


def test_data_that_have_changed_under_their_name_are_other_data(data, tmp_path):
    config = tiny_config(data, tmp_path)
    checkpoint = known(config)
    size = (data / "train.bin").stat().st_size
    with IndexedDatasetWriter(data / "train", np.uint16) as writer:
        writer.add_document(np.arange(50))
    (said,) = mixed_experiments(checkpoint, config, fingerprints(config.data))
    assert said == (
        f"data.train: {data}/train has changed since it was saved ({size:,} bytes of tokens then, "
        "100 now)"
    )


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_a_byte_of_a_small_dataset_changes_its_fingerprint(data, tmp_path, suffix):
    config = tiny_config(data, tmp_path)
    path = data / f"train.{suffix}"
    before, content = fingerprints(config.data), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert fingerprints(config.data) != before


def test_a_tokenizer_of_other_ids_is_another_one_under_its_old_name(data, tmp_path):
    config = tiny_config(data, tmp_path, data__tokenizer="bytes")
    checkpoint = known(config)
    checkpoint.manifest["data"]["tokenizer"] = "0" * 64
    assert mixed_experiments(checkpoint, config, fingerprints(config.data)) == [
        "data.tokenizer: bytes has another content than when it was saved"
    ]


@pytest.mark.parametrize(
    "harm",
    [
        {"data": {"datasets": 1}},
        {"data": {"datasets": {}}},
        {"config": {"model": {}, "data": 5}},
        {"config": {"model": {}, "training": []}},
        {"config": {"model": {}, "data": {"train": {"a": "b"}}}},
    ],
    ids=str,
)
def test_a_forged_experiment_is_a_message(data, tmp_path, harm):
    config = tiny_config(data, tmp_path)
    checkpoint = known(config)
    forged = Checkpoint(checkpoint.path, {**checkpoint.manifest, **harm})
    with pytest.raises(CheckpointError, match="no configuration that can be compared"):
        mixed_experiments(forged, config, fingerprints(config.data))


def test_a_run_with_another_seed_is_refused_and_changes_nothing(data, tmp_path):
    run_dir, screen = tmp_path / "run", tmp_path / "screen"
    train(tiny_config(data, run_dir, training__steps=3))
    before = (run_dir / "metrics.jsonl").read_bytes()
    # Neither a finished run nor one with steps to take is another one's beginning.
    for steps in (3, 5):
        options = {"training__steps": steps, "training__seed": 7}
        assert start(tiny_config(data, run_dir, **options), screen=screen) == [2]
        (run_dir / "logs" / ".failed").unlink()  # as a launch does
    said = screen.read_text()
    assert said.count("training.seed: 1234 in the checkpoint, 7 in the configuration") == 2
    assert "--set checkpoint.accept_changes=true" in said
    assert "Traceback" not in said
    assert (run_dir / "metrics.jsonl").read_bytes() == before
    assert [path.name for path in (run_dir / "checkpoints").glob("step-*")] == ["step-00000003"]


def test_a_mixture_that_is_accepted_is_said(data, tmp_path):
    run_dir, screen = tmp_path / "run", tmp_path / "screen"
    train(tiny_config(data, run_dir, training__steps=3))
    shutil.copy(data / "valid.bin", data / "train.bin")
    shutil.copy(data / "valid.idx", data / "train.idx")
    options = {"training__seed": 7, "checkpoint__accept_changes": True, "training__steps": 5}
    assert start(tiny_config(data, run_dir, **options), screen=screen) == [0]
    said = screen.read_text()
    assert "changed since step-00000003: training.seed 1234 -> 7" in said
    assert f"changed since step-00000003: data.train: {data}/train has changed" in said
    assert "the learning rate of step 4 is 0.00775; with the options of the checkpoint" in said
    # What is saved from then on is the new experiment.
    options["checkpoint__accept_changes"] = False
    assert start(tiny_config(data, run_dir, **options)) == [0]
