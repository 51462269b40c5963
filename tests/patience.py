"""Time limit for expected events."""

PATIENCE = 120.0
"""Seconds: enough for a busy machine, and never used up by a test that passes."""
