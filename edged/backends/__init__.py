"""Backends: what runs a model file, one kind a module."""
