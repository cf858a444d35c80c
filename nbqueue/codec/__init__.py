"""Values, functions and exceptions to bytes and back; knows nothing of Redis."""
