#!/usr/bin/env python3
"""`gptx preprocess` from a checkout, which need not be installed or active."""

if __name__ == "__main__":
    from checkout import run

    run("preprocess")
