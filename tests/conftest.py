"""What tests of many files share."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_gptx.config.errors import UserError
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.writer import IndexedDatasetWriter
from megatron_gptx.ops.kernels import library
from megatron_gptx.ops.kernels.build import BuildError, find_built
from megatron_gptx.tokenizer.train import train_byte_level_bpe
from tests.budget import Budget
from tests.runs import Finished, make_once, tiny_config, train_once, write_corpus

# A shell starts background jobs with SIGINT ignored, nohup adds SIGHUP, and every child inherits
# that. Tests that interrupt a program are about one that was started in a terminal.
for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1):
    if signal.getsignal(signum) is signal.SIG_IGN:
        interrupts = signum == signal.SIGINT
        signal.signal(signum, signal.default_int_handler if interrupts else signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--budget", action="store_true", help="fail beyond what budgets.yml allows")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Budget(binding=config.getoption("budget")))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Print what the numbers of this session depend on, also where -q hides pytest's header."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:  # a worker of pytest-xdist has none
        reporter.write_line(describe_machine())


def describe_machine() -> str:
    """Return which path the kernels take, which PyTorch's take, torch's version and CPU cores."""
    asked = os.environ.get("GPTX_CPU_CAPABILITY")
    try:
        # Never a build: a test that needs the kernels makes one, others do without.
        ours = "not built yet" if find_built() is None else library.load(print)
        ours = ours or library.cpu_capability()
    except BuildError as error:
        ours = f"cannot be built: {error}"
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    return (
        f"kernels: {ours} (GPTX_CPU_CAPABILITY {asked or 'not set'}), ATen: "
        f"{torch.backends.cpu.get_cpu_capability().lower()}, torch {torch.__version__}, "
        f"{len(os.sched_getaffinity(0))} CPU cores"
    )


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that is the same one for all workers of this session."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # it has a folder of its own in the session's
        folder = folder.parent
    (folder / "shared").mkdir(exist_ok=True)
    return folder / "shared"


@pytest.fixture(scope="session")
def corpus(shared: Path) -> Path:
    """Return a folder with the datasets that `tiny_config` names; nobody writes into it."""
    folder = shared / "corpus"
    make_once(folder, lambda: write_corpus(folder))
    return folder


@pytest.fixture(scope="session")
def finished(corpus: Path, shared: Path) -> Callable[..., Finished]:
    """Return what trains the tiny model with options; equal options train once in a session."""

    def finished(**options: object) -> Finished:
        return train_once(tiny_config(corpus, shared, **options), shared)

    return finished


@pytest.fixture
def make_dataset(tmp_path):
    """Write documents given as lists of ids, and open them."""

    def make(documents, *, name="tokens", dtype=np.uint16):
        prefix = tmp_path / name
        with IndexedDatasetWriter(prefix, dtype) as writer:
            for document in documents:
                writer.add_document(document)
        return IndexedDataset(prefix)

    return make


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    """Make a tokenizer.json of bytes, a few merges and an end of document."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_byte_level_bpe(["the cat sat on the mat " * 20], vocab_size=270))
    return path


@pytest.fixture
def clock():
    """Fail a test that hangs."""

    def fail(*_):
        raise TimeoutError("this case hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
