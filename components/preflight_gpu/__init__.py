"""The `preflight_gpu` step."""
