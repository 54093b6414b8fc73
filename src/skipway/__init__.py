"""Skipway: residual networks, from the paper to production."""

__version__ = "0.1.0"
