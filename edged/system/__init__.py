"""The computer and the operating system: child processes, sensors of the board, credentials and the log."""
