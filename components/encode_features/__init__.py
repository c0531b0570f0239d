"""The `encode_features` step."""
