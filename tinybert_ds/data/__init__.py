"""The data: shards, their order, samples, tasks and batches."""
