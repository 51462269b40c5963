"""Sources: where chunks of samples come from, one kind a module."""
