#!/usr/bin/env python3
"""`gptx checkpoints` from a checkout, which need not be installed or active."""

if __name__ == "__main__":
    from checkout import run

    run("checkpoints")
