"""The emulator runs right kernels rightly, and shows the mistakes it is there to show."""

import subprocess

import pytest

from tests.ops.emulator.compile import compile_wrong_kernels


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[str]]:
    """Return what becomes of each kernel in each order of turns."""
    done = subprocess.run([compile_wrong_kernels()], capture_output=True, text=True, check=True)
    lines = (line.split("\t") for line in done.stdout.splitlines())
    return {name: found for name, *found in lines}


@pytest.mark.parametrize("kernel", ["warp", "block"])
def test_threads_that_wait_for_their_neighbours_are_right_in_every_order(outcomes, kernel):
    assert outcomes[kernel] == ["right"] * 3


@pytest.mark.parametrize("kernel", ["warp without waiting", "block that waits in warps"])
def test_threads_that_do_not_wait_are_wrong_in_some_order(outcomes, kernel):
    assert "wrong" in outcomes[kernel]


def test_lanes_in_different_operations_are_an_error(outcomes):
    assert all(found.startswith("one warp is in __") for found in outcomes["elsewhere"])


@pytest.mark.parametrize("kernel", ["early", "early in block"])
def test_waiting_for_a_thread_that_has_ended_is_an_error(outcomes, kernel):
    assert all(found.startswith("threads wait forever") for found in outcomes[kernel])
