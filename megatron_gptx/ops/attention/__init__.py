"""Exact top-k attention: one front, and a path for each device."""
