"""Run a module as a program: `python module.py NAME [ARGUMENT ...]`.

Unlike `python -m` it imports nothing from the current folder, where a user's `queue.py` may lie.
Python's own option for that, `-P`, is younger than the oldest Python here.
"""

import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # this file's folder, whose names are no top-level modules either

    import runpy

    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
