"""Words to people are dropped where nobody takes them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_gptx.distributed.log import lossy, lossy_output

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["a reader that left", "a full disk"])
def descriptor(request):
    """A descriptor to which nothing can be written."""
    if request.param == "a full disk":
        taken = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, taken = os.pipe()
        os.close(reader)
    yield taken
    os.close(taken)


def test_what_nobody_takes_is_dropped(descriptor):
    stream = lossy(descriptor)
    for _ in range(3):
        stream.write("x" * 100_000 + "\n")
        stream.flush()
    assert not stream.isatty()
    assert stream.fileno() == descriptor


def test_what_somebody_reads_arrives_at_once():
    reader, writer = os.pipe()
    lossy(writer).write("step 1\n")
    assert os.read(reader, 100) == b"step 1\n"
    os.close(reader)
    os.close(writer)


def test_a_process_goes_on_when_nobody_reads_its_output(descriptor):
    before, kept = sys.stdout, [os.dup(1), os.dup(2)]
    try:
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        with lossy_output():
            sys.stdout.write("saved\n")
            sys.stderr.write("error\n")
    finally:
        for number, original in enumerate(kept, start=1):
            os.dup2(original, number)
            os.close(original)
    assert sys.stdout is before


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("| true", 0, ""),
        (">&-", 0, ""),
        ("> /dev/full", 2, "the output cannot be written: No space left on device\n"),
    ],
)
def test_a_program_that_nobody_reads_shows_no_traceback(command, status, said):
    words = f"{sys.executable} tools/plan.py 1B {command}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (status, said)
