"""The control plane: the operator's socket, the service manager and the metrics page."""
