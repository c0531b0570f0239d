"""The `encode_shard` step."""
