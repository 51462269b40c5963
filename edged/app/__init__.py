"""The daemon: composes every part, starts it and stops it."""
