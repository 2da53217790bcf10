"""Arguments are read as a shell hands them to a program."""

from pathlib import Path

import pytest

from megatron_gptx.config.errors import ConfigError
from megatron_gptx.convert.arithmetic import evaluate
from megatron_gptx.convert.shell import read_megatron


def read(tmp_path, *texts):
    paths = []
    for number, text in enumerate(texts):
        paths.append(tmp_path / f"{number}.sh")
        paths[-1].write_text(text)
    return {name: found.value for name, found in read_megatron(paths).items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--lr 1e-4 --num-layers 2", {"lr": 1e-4, "num_layers": 2}),
        ("--lr=1e-4 --fp16", {"lr": 1e-4, "fp16": True}),
        ("--train-samples 220_000_000", {"train_samples": 220_000_000}),
        ("--lr 1_0.5 --a 1__0 --b _1", {"lr": 10.5, "a": "1__0", "b": "_1"}),
        ("--eval-iters -1 --spec a b", {"eval_iters": -1, "spec": ["a", "b"]}),
        ("--a 1 # --b 2\n# --c 3", {"a": 1}),
        ("--a x#y", {"a": "x#y"}),
        ("--a 1 \\\n  --b 2", {"a": 1, "b": 2}),
        ("--a 1\n2 --b 3", {"a": 1}),
        ("--a 'b c' --d \"e\"", {"a": ["b", "c"], "d": "e"}),
        ("A='--a 1\n  --b 2'", {"a": 1, "b": 2}),
    ],
)
def test_words_are_those_of_a_shell(text, expected, tmp_path):
    assert read(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("N=2\n--a $N", 2),
        ("export N=2\n--a ${N}", 2),
        ("--a ${N:-3}", 3),
        ("N=2\n--a ${N:-3}", 2),
        ("N=${N:-3}\n--a $N", 3),
        ("N=''\n--a ${N:-3}", 3),
        ("N=''\n--a ${N-3} 4", 4),
        ("--a ${N-3}", 3),
        ("--a ${1:-'runs/x'}", "runs/x"),
        ('P=${1:-"runs/x"}\n--a "$P"', "runs/x"),
        ("M=4\n--a ${N:-$M}", 4),
        ("M=4\n--a ${N:-${M}}", 4),
        ("A=1 B=2\n--a $A$B", 12),
        ("D=data\n--a $D/train_$D", "data/train_data"),
        ("W='0.3 a 0.7 b'\n--a $W", [0.3, "a", 0.7, "b"]),
        ("T=$((64 / 8))\n--a $T", 8),
        ("P=8\nT=$(($P*2 - (1 + 3)))\n--a $T", 12),
        ("P=8\n--a $((P % 3))", 2),
        ("N=1\nN+=2\n--a $N", 12),
        ("N=2\nif [ $N = 1 ]; then N=2; fi\n--a $N", 2),
        ("if [ -z $N ]; then N=2; fi\n--a $N", 2),
        ("N=''\nif [ -z $N ]; then\n  N=2\nfi\n--a $N", 2),
        ("N=5\nif x; then M=1; else M=2; fi\n--a $N", 5),
        ("case $S in\n 8B) N=56 ;;\n *) echo no; exit 1 ;;\nesac\n--a $N", 56),
        ("if x; then\n if y; then N=2; fi\nelse N=2\nfi\n--a $N", 2),
        ("cat <<EOT > f.json\nit's \"--b 1\nEOT\n--a 2", 2),
    ],
)
def test_variables_are_filled_in(text, expected, tmp_path):
    assert read(tmp_path, text) == {"a": expected}


@pytest.mark.parametrize(
    "text",
    [
        "--a $5",
        "--a ${5}",
        "D=$5 # <Specify path>\n--a $D",
        "--a $UNSET",
        "D=$(pwd)/x\n--a $D",
        "D=`date +'%y %m'`\n--a $D",
        "N=$((M + 1))\n--a $N",
        "case $S in\n 800M) N=48 ;;\n 8B) N=56 ;;\nesac\n--a $N",
        "if [ $S = 1 ]; then\n N=48\nelse\n N=56\nfi\n--a $N",
        "if x; then N=${N:-61}; elif y; then N=${N:-60}; fi\n--a $N",
        "N=1\nif [ $S = 1 ]; then N=48; fi\n--a $N",
        "if x; then\n if y; then N=2; else N=3; fi\nfi\n--a $N",
        "if [ $S = 1 ]; then\n X=(--a 48)\nelse\n X=(--a 56)\nfi",
    ],
)
def test_what_the_script_does_not_say_keeps_its_dollar(text, tmp_path):
    assert "$" in read(tmp_path, text)["a"]


def test_lists_in_brackets_are_read_where_they_are_made(tmp_path):
    text = """\
EMPTY=()
ARGS=(
    --num-layers 2   # not --num-layers 3
    # --hidden-size 8
    "--fp8-format hybrid"
    "--split '99,1,0'"
)
ARGS+=(--lr 1)
if [ -n "$KEY" ]; then
    ARGS+=(--seed 5)
fi
torchrun "${ARGS[@]}" ${EMPTY[@]} pretrain_gpt.py --bf16
"""
    expected = {"num_layers": 2, "fp8_format": "hybrid", "split": "99,1,0", "lr": 1, "seed": 5}
    assert read(tmp_path, text) == {**expected, "bf16": True}


def test_a_list_in_quotes_may_be_extended(tmp_path):
    text = 'A="--a 1"\nA="$A --b 2 \\\n  --c 3"\npython pretrain_gpt.py $A --d 4\n'
    assert read(tmp_path, text) == {"a": 1, "b": 2, "c": 3, "d": 4}


def test_each_argument_has_its_own_line(tmp_path):
    path = tmp_path / "run.sh"
    path.write_text('A="\n  --a 1 \\\n  --b 2"\nB=(\n  --c 3\n)\nX=5\n--d $X\n')
    lines = {name: found.place.line for name, found in read_megatron([path]).items()}
    assert lines == {"a": 2, "b": 3, "c": 5, "d": 8}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("torchrun --nproc_per_node 8 a/pretrain_gpt.py --lr 1", {"nproc_per_node": 8, "lr": 1}),
        ("OMP=1 python -m x.launch --nnodes 2 pretrain_gpt.py --lr 1", {"nnodes": 2, "lr": 1}),
        ("srun --container-image x -l python pretrain_gpt.py --lr 1", {"lr": 1}),
        ("$RUN --lr 1", {"lr": 1}),
        ("exec torchrun --module pretrain_gpt --lr 1", {"module": "pretrain_gpt", "lr": 1}),
        ("deepspeed --num_nodes=2 pretrain_gpt.py --lr 1 | tee x", {"num_nodes": 2, "lr": 1}),
        ("mkdir --parents x; docker run --rm y", {}),
        ("torchrun pretrain_bert.py --lr 1", {"script": "pretrain_bert.py", "lr": 1}),
    ],
)
def test_only_what_reaches_megatron_is_read(command, expected, tmp_path):
    assert read(tmp_path, command) == expected


def test_later_files_see_the_variables_of_earlier_ones(tmp_path):
    assert read(tmp_path, "N=2\n--a 1 --c 1", "--a $N") == {"a": 2, "c": 1}


@pytest.mark.parametrize("text", ["1 +", "a(1)", "1 / 0", "'x'", "2 ** 9", "N", "8B", "1.5", ""])
def test_arithmetic_knows_whole_numbers_alone(text):
    assert evaluate(text, {"N": "text"}) is None


@pytest.mark.parametrize(
    "text",
    ['A="', "A=(", "--a ${", "$((", "if", "\\", "A=''\n''", "$", "`", "--a `", "#", "--a <<E"],
)
def test_a_script_that_breaks_off_is_read_as_far_as_it_goes(text, tmp_path):
    read(tmp_path, text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "this is no script: it is not UTF-8 text"),
        (b"--a 1 " * 50_000, "this is no script: larger than 256 KiB"),
        (b"--a " + b"${A:-" * 5_000, "its variables are nested too deeply"),
    ],
)
def test_what_is_no_script_is_one_message(content, message, tmp_path):
    (tmp_path / "run.sh").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_megatron([tmp_path / "run.sh"])


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"absent\.sh: cannot be read"):
        read_megatron([Path("absent.sh")])
