"""preftune: fine-tune language models on preferences."""

__version__ = "0.1.0"
