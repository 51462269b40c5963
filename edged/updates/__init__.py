"""The update machine: new versions come in, are tried, and serve or are taken back."""
