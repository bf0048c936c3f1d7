"""Batches pass from data workers to the trainer through shared memory."""
