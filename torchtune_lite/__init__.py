"""Fine-tuning of language models with code that people can read."""

__version__ = "0.1.0"
