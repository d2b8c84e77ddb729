"""Checkpoints with a vector in them: planned from headers, written shard by shard, verified."""
