"""The `smoke_test_encoder` step."""
