"""Sinks: destinations of predictions, one kind per module."""
