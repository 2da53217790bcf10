"""One step, many times, and everything around it."""
