"""Trained models that come with the package, each with card, training log and command.

Of each name there are ``NAME.safetensors`` (float16, the card in it), ``NAME.onnx`` (for the base
install, the card in it) and ``NAME.jsonl`` (a row an epoch of its training).
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

NAMES = ("cifar10-resnet20", "fashion-mnist-resnet20")
"""What every command takes in place of a file."""


def file(name: str, suffix: str) -> Path:
    """The file of a shipped model with that suffix; `name` is one of `NAMES`."""
    return Path(str(files(__name__) / f"{name}{suffix}"))
