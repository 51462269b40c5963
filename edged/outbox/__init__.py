"""The way out to the broker: the spool that keeps messages and the publisher that sends them."""
