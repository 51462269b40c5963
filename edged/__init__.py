"""The inference daemon of a small Linux board."""

__version__ = "0.1.0"
