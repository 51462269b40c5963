"""The update machine: new versions come in, are tried, and then serve or are withdrawn."""
