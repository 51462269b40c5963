"""The inference daemon of a small Linux board."""

__version__ = "0.2.0"
