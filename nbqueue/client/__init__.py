"""The wing that lives in the kernel: queues, tasks, futures, batches. Knows stream, codec and progress."""
