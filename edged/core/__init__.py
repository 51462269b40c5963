"""Rules: pure functions and plain data, with no operating system, thread, socket or clock in sight."""
