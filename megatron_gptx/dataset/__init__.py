"""Token files: written, read, verified, merged, split."""
