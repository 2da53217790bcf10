"""Mathematical operations, each with a plain reference and kernels."""
