"""The `evaluate_shard` step."""
