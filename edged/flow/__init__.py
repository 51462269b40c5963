"""The data plane: a reader thread per source, a worker thread per pipeline, and the queues between them."""
