"""How long a test waits for what must come."""

PATIENCE = 120.0
"""Seconds: long enough for a machine that is busy with much else, and never waited out by a test that passes."""
