"""The `evaluate_policy` step."""
