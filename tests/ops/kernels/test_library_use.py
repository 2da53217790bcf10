"""An operation that is called by itself loads its kernels, or says why it does without them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_gptx.config.errors import UserError
from megatron_gptx.ops.attention.dispatch import attention
from megatron_gptx.ops.attention.topk_softmax import topk_softmax
from megatron_gptx.ops.linear import linear
from megatron_gptx.ops.linear_cross_entropy import linear_cross_entropy

ROOT = Path(__file__).resolve().parents[3]
CALLS = """
import os
import torch
from megatron_gptx.ops.kernels import library
from megatron_gptx.ops.attention.dispatch import attention
from megatron_gptx.ops.linear import linear
from megatron_gptx.ops.linear_cross_entropy import linear_cross_entropy
from megatron_gptx.ops.attention.topk_softmax import topk_softmax
x = torch.randn(1, 2, 6, 4)
calls = {
    "attention": lambda: attention(x, x, x, top_k=2)[0],
    "softmax": lambda: topk_softmax(torch.randn(1, 2, 6, 6), 2),
    "linear": lambda: linear(x, torch.randn(3, 4)),
    "loss": lambda: linear_cross_entropy(
        x.view(12, 4), torch.randn(5, 4), torch.zeros(12, dtype=torch.long), ignored=-1
    ),
}
"""
# Forked, each operation is in a process that has loaded torch and nothing else.
EACH = """
for name, call in calls.items():
    if os.fork() == 0:
        call()
        print(name, library.loaded(), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, name
"""
TRACED = f"""
import torch._dynamo
compiled = lambda call: torch.compile(call, backend="aot_eager", fullgraph=True)
calls = {{name: compiled(call) for name, call in calls.items()}}
{EACH}
"""
OFTEN = f"{CALLS}\nfor _ in range(3):\n    calls['attention']()"
ALL_LOADED = "".join(f"{name} True\n" for name in ("attention", "softmax", "linear", "loss"))
WIDE = torch.zeros(1, 2, 6, 4, dtype=torch.float64)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, which has loaded nothing."""
    # No threads, which a fork would leave behind.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_an_operation_loads_its_kernels_by_itself(kernels):
    done = python(CALLS + EACH)
    assert (done.stdout, done.stderr, done.returncode) == (ALL_LOADED, "", 0)


def test_the_example_of_the_documentation_runs_on_the_kernels(kernels):
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    check = "from megatron_gptx.ops.kernels import library\nprint(library.loaded())"
    done = python(f"{example}\n{check}")
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


def test_a_caller_without_a_compiler_is_told_why_once_and_nothing_is_built_twice(tmp_path):
    missing = {"CXX": "no-such-compiler", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    done = python(OFTEN, **missing)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("building the kernels in ") == 1
    (warned,) = [line for line in done.stderr.splitlines() if "UserWarning" in line]
    expected = "attention runs in plain PyTorch, since the build failed: "
    assert warned.startswith("<string>:")  # the caller's line, not one of ours
    assert expected in warned
    assert "no-such-compiler" in warned


def test_tracing_loads_kernels_that_are_built(kernels):
    done = python(CALLS + TRACED)
    assert (done.stdout, done.returncode) == (ALL_LOADED, 0), done.stderr


def test_tracing_builds_nothing(tmp_path):
    only = "calls = {'linear': calls['linear']}"
    done = python(f"{CALLS}{only}{TRACED}", TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert (done.stdout, done.returncode) == ("linear False\n", 0), done.stderr
    assert "are not built, and nothing is while torch.compile traces" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "call"),
    {
        "attention": lambda backend: attention(WIDE, WIDE, WIDE, top_k=2, backend=backend),
        "top-k softmax": lambda backend: topk_softmax(WIDE.transpose(2, 3), 2, backend=backend),
        "linear": lambda backend: linear(WIDE, torch.zeros(3, 4).double(), backend=backend),
        "loss": lambda backend: linear_cross_entropy(
            WIDE.view(12, 4),
            torch.zeros(5, 4).double(),
            torch.zeros(12, dtype=torch.long),
            ignored=-1,
            backend=backend,
        ),
    }.items(),
)
def test_messages_speak_of_the_argument_that_a_caller_knows(name, call):
    reason = "the kernels take float32, bfloat16 and float16, not torch.float64"
    with pytest.raises(
        UserError, match=rf"^the fused {name} cannot run: {reason};.*backend='auto'"
    ):
        call("fused")
    with pytest.warns(UserWarning, match=rf"^{name} runs in plain PyTorch, since {reason}") as seen:
        call("auto")
    assert [warning.filename for warning in seen] == [__file__]
    call("reference")
