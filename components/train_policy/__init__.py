"""The `train_policy` step."""
