"""The compiled kernels: built, loaded, chosen."""
