"""The steps of a campaign as Kubeflow Pipelines components: thin bodies that call `roboimi`."""
