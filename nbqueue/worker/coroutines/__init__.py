"""Calls of async functions, which run beside each other in one worker."""
