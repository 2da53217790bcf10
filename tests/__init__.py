"""Tests: one folder per package, and the helpers they share."""
