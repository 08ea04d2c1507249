"""A task's data: rows, processor, metric."""
