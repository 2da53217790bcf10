#!/usr/bin/env python3
"""From nothing to a trained GPT-X model: the commands a newcomer would type, one after the other.

The corpus is Python's own standard library. Every command leaves what is already built as it is,
so that a second run resumes, or says that everything is finished.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA, RUN = Path("data/quickstart"), Path("runs/quickstart")
CONFIG = "configs/quickstart.yml"
VOCAB_SIZE = 4096
PROMPT = "def __init__(self, "


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    started_at = time.monotonic()
    lists = {part: DATA / f"{part}.list" for part in ("train", "valid")}
    tokenizer = DATA / "tokenizer.json"

    say("1. A corpus: the source files of Python's standard library")
    run("tools/quickstart_corpus.py", "--output", DATA)

    say("2. A tokenizer: byte-level BPE, trained on it")
    run(
        *("tools/train_tokenizer.py", "--list-file", lists["train"]),
        *("--vocab-size", VOCAB_SIZE, "--output", tokenizer),
    )

    say("3. Token datasets: memory-mapped .bin and .idx")
    for part, files in lists.items():
        run(
            *("tools/preprocess_data.py", "--list-file", files, "--tokenizer", tokenizer),
            *("--output-prefix", DATA / part, "--append-eod", "--workers", 2),
        )

    say("4. Training: a two-stage DeepSpeed pipeline")
    run("deepy.py", "train.py", CONFIG)

    say("5. Evaluation")
    evaluation = run("deepy.py", "evaluate.py", CONFIG, "--json", capture=True)
    (ROOT / RUN / "evaluation.json").write_text(evaluation)
    result = json.loads(evaluation)

    say("6. A sample")
    run("deepy.py", "generate.py", CONFIG, "--prompt", PROMPT, "--output", RUN / "sample.txt")

    say("7. A picture of the loss")
    run("tools/plot_run.py", RUN, "--entropy", result["unigram_entropy"])

    loss, entropy = result["valid_loss"], result["unigram_entropy"]
    verdict = "below" if loss < entropy else "NOT below"
    say(
        f"validation loss {loss:.3f} is {verdict} the corpus' unigram entropy {entropy:.3f} "
        f"(nats per token); {time.monotonic() - started_at:.0f} s in all\n"
        f"see {RUN}: config.yml, metrics.jsonl, checkpoints/, sample.txt, loss.png"
    )
    return 0 if loss < entropy else 1


def run(script: str, *arguments: object, capture: bool = False) -> str:
    """Run one of the project's commands as a user would; end with its status if it fails."""
    words = [script, *map(str, arguments)]
    print(f"$ {shlex.join(['python', *words])}", flush=True)
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, text=True, stdout=subprocess.PIPE if capture else None
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
