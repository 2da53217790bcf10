"""Samples and batches of a rank."""
