"""The `validate_dataset` step."""
