"""Compose and run the daemon."""
