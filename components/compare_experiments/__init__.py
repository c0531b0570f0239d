"""The `compare_experiments` step."""
