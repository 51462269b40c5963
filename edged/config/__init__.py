"""The configuration: TOML files into frozen structs."""
