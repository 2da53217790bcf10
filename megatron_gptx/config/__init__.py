"""Plain data: one YAML file, checked once, the same on every rank."""
