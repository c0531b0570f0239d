"""Where and how a step runs: image, resources, GPU, secrets and retries of its pod, or its share of one machine.

Two small trainings side by side, each on half of the cores, get further than one after the other on all of them: a
network of this size spends much of a step in operations that gain nothing from a second thread.
"""

from kfp import dsl, kubernetes

from pipelines.profiles import CPU_IMAGE_STEPS, GPU_STEPS, Cluster, Profile
from roboimi.cores import usable_cores

POD_FACTS = {
    "KFP_POD_NAME": "metadata.name",
    "KFP_NODE_NAME": "spec.nodeName",
    "KFP_RUN_ID": "metadata.labels['pipeline/runid']",
}
"""Environment variables of every pod, for its launch record."""

SITE_SETTINGS = {
    "endpoint": "ROBOIMI_S3_ENDPOINT",
    "region": "AWS_REGION",
    "swanlab_mode": "SWANLAB_MODE",
    "hub_offline": "HF_HUB_OFFLINE",
}
"""Keys of the site's ConfigMap -> environment variables of every pod; all optional."""

CA_FOLDER = "/etc/roboimi/ca"

PART_OF = {"app.kubernetes.io/part-of": "roboimi-campaign"}
"""Label of every step's pod: what network policies, quotas and `status` select by."""

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

EXIT_TASK = "compare_experiments"

ARM_STEPS = frozenset({"train_policy", "evaluate_shard", "evaluate_policy"})
"""The steps of one arm, which run beside those of others where the profile's parallelism is above 1."""


def place(task: dsl.PipelineTask, step: str, profile: Profile, *, cache: bool = False) -> None:
    """Configure one task.

    Args:
        task: what calling the component gave.
        step: its name in `pipelines.profiles.STEPS`.
        profile: without a cluster in it, a step gets no pod but a number of threads, and is never cached by KFP.
        cache: whether KFP may take the step's outputs from an earlier run with the same inputs.
    """
    task.set_caching_options(cache and profile.cluster is not None)
    task.set_display_name(step.replace("_", " ").capitalize())
    if profile.cluster is None:
        if step in ARM_STEPS:
            threads = str(max(1, usable_cores() // profile.parallelism))
            # Those of torch and NumPy, and those of Mesa's software renderer.
            task.set_env_variable("OMP_NUM_THREADS", threads).set_env_variable("LP_NUM_THREADS", threads)
        return
    _containers(task, step, profile.cluster)
    _pod(task, step, profile.cluster)
    if step in GPU_STEPS:
        _gpu(task, profile.cluster)


def _containers(task: dsl.PipelineTask, step: str, cluster: Cluster) -> None:
    image = cluster.images.cpu if step in CPU_IMAGE_STEPS else cluster.images.gpu
    cpu_request, cpu_limit, memory_request, memory_limit = cluster.resources[step]
    task.set_container_image(image)
    task.set_cpu_request(cpu_request).set_cpu_limit(cpu_limit)
    task.set_memory_request(memory_request).set_memory_limit(memory_limit)
    task.set_env_variable("ROBOIMI_IMAGE", image)
    # A limit hides no core: libraries would start a thread for each of the node's, and be stopped most of the time.
    task.set_env_variable("OMP_NUM_THREADS", str(whole_cores(cpu_limit)))
    if step != EXIT_TASK:
        retry = cluster.retry
        task.set_retry(retry.count, retry.backoff, retry.factor, retry.max_duration)


def whole_cores(quantity: str) -> int:
    """How many threads make use of a CPU limit such as `4` or `500m`."""
    cores = float(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1)
    return max(1, int(cores))


def _pod(task: dsl.PipelineTask, step: str, cluster: Cluster) -> None:
    for variable, path in POD_FACTS.items():
        kubernetes.use_field_path_as_env(task, variable, path)
    for secret in cluster.secrets:
        if not secret.steps or step in secret.steps:
            kubernetes.use_secret_as_env(task, secret.name, dict(secret.env), optional=not secret.required)
    if cluster.defaults_config_map:
        kubernetes.use_config_map_as_env(task, cluster.defaults_config_map, dict(SITE_SETTINGS), optional=True)
    if cluster.ca_config_map:
        kubernetes.use_config_map_as_volume(task, cluster.ca_config_map, CA_FOLDER)
        task.set_env_variable("AWS_CA_BUNDLE", f"{CA_FOLDER}/ca.crt")
    for label, value in {**PART_OF, "app.kubernetes.io/component": step.replace("_", "-")}.items():
        kubernetes.add_pod_label(task, label, value)
    security = cluster.security
    kubernetes.set_security_context(task, security.run_as_user, security.run_as_group, run_as_non_root=True)
    if step in cluster.timeout_s:
        kubernetes.set_timeout(task, cluster.timeout_s[step])
    kubernetes.set_image_pull_policy(task, "IfNotPresent")


def _gpu(task: dsl.PipelineTask, cluster: Cluster) -> None:
    gpu = cluster.gpu
    if cluster.queue:
        kubernetes.add_pod_label(task, QUEUE_LABEL, cluster.queue)
    if gpu.count:
        task.set_accelerator_type(gpu.resource).set_accelerator_limit(gpu.count)
        task.set_env_variable("ROBOIMI_GPUS", str(gpu.count))
    for toleration in gpu.tolerations:
        kubernetes.add_toleration(task, **toleration)
    for label, value in gpu.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    # The container default of 64 MiB is too little for data loader workers that hand tensors over.
    kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=gpu.shm_size)
