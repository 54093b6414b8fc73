"""The version of Skipway."""

__version__ = "0.1.0"
