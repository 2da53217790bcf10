"""GPT-X: decoder-only language models with unusual parts, trained through DeepSpeed pipelines."""

__version__ = "0.1.0"
