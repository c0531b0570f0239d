"""The campaign on a cluster: submitted, watched, retried and stopped through Kubeflow Pipelines."""
