"""The campaign as a Kubeflow pipeline: one factory, whose result compiles for a cluster and runs on one machine.

Stages:
    1. validate_dataset       the episodes are what their manifest says, and fit for training
    2. smoke_test_encoder     the frozen vision tower works, and sees
    3. preflight_gpu          cluster only: CUDA, the headless renderer and the code are what they should be
    4. encode_features        every image through the tower, once; on a cluster in shards
    5. for each arm           train_policy, then evaluate_policy in simulation; on a cluster in shards
    6. compare_experiments    the exit task: the report, whatever happened

A stage in shards is a loop of small steps over `1/4`, `2/4`, ..., and after it the same step that does all of it where
there are no shards: it finds their work done and completes it, and would do what is missing.
"""

from collections.abc import Callable, Sequence
from typing import Any

from kfp import dsl

from components.compare_experiments.component import compare_experiments
from components.encode_features.component import encode_features
from components.encode_shard.component import encode_shard
from components.evaluate_policy.component import evaluate_policy
from components.evaluate_shard.component import evaluate_shard
from components.preflight_gpu.component import preflight_gpu
from components.smoke_test_encoder.component import smoke_test_encoder
from components.train_policy.component import train_policy
from components.validate_dataset.component import validate_dataset
from pipelines.arms import Arm, campaign_arms
from pipelines.placement import place
from pipelines.profiles import Profile

PIPELINE_NAME = "roboimi-campaign"
DESCRIPTION = "Train and compare robot policies on one dataset: validate, encode, train and evaluate each arm, report."


def build_campaign(profile: Profile, arms: Sequence[Arm] | None = None) -> Callable[..., Any]:
    """Make the pipeline function of a profile.

    Args:
        profile: parallelism, images and placement are fixed when the pipeline is made; all else is a parameter.
        arms: default of the parameter `experiments`; None: the profile's own.

    Returns:
        A pipeline function for `kfp.compiler.Compiler` or, after `kfp.local.init`, to call.
    """
    defaults = profile.defaults
    if arms is None:
        arms = campaign_arms(defaults)
    default_experiments = [arm.as_parameter() for arm in arms]
    # Only as a whole argument does the backend replace this placeholder; inside a longer string it would stay.
    job_id = profile.job_id or dsl.PIPELINE_JOB_ID_PLACEHOLDER
    on_cluster = profile.cluster is not None
    # A step that KFP's cache may skip must not have the run id among its inputs: they are the cache's key. On the
    # cluster these steps read it from their pod instead.
    cached_job_id = "" if on_cluster else job_id

    shards = profile.shard_arguments() or {"encode_shards": [], "eval_shards": [], "require_gpu": False}

    @dsl.pipeline(name=PIPELINE_NAME, description=DESCRIPTION, pipeline_config=_configuration(profile))
    def campaign(
        dataset: str,
        dataset_digest: str,
        store: str = defaults.store,
        encoder: str = defaults.encoder,
        experiments: list[dict] = default_experiments,
        train_overrides: list[str] = list(defaults.train_overrides),  # noqa: B006 (read once, into the compiled pipeline)
        eval_episodes: int = defaults.eval_episodes,
        eval_seed: int = defaults.eval_seed,
        code_revision: str = "",
        encode_shards: list[str] = shards["encode_shards"],
        eval_shards: list[str] = shards["eval_shards"],
        require_gpu: bool = shards["require_gpu"],
    ):
        # ==== Stage 6, declared first: it runs last, also when a stage before it failed ====
        compare = compare_experiments(store=store, job_id=job_id, experiments=experiments)
        place(compare, "compare_experiments", profile)

        with dsl.ExitHandler(compare, name="campaign"):
            # ==== Stage 1: the data ====
            validate = validate_dataset(
                dataset=dataset, dataset_digest=dataset_digest, store=store, job_id=cached_job_id
            )
            place(validate, "validate_dataset", profile, cache=True)
            validated = validate.outputs["validated"]

            # ==== Stage 2: the encoder ====
            smoke = smoke_test_encoder(
                encoder=encoder, train_overrides=train_overrides, store=store, job_id=cached_job_id, dataset=validated
            )
            place(smoke, "smoke_test_encoder", profile, cache=True)
            before = [smoke]

            # ==== Stage 3: the GPU node (cluster only) ====
            if on_cluster:
                preflight = preflight_gpu(
                    encoder=encoder,
                    train_overrides=train_overrides,
                    code_revision=code_revision,
                    require_gpu=require_gpu,
                    store=store,
                    job_id=job_id,
                    dataset=validated,
                )
                place(preflight, "preflight_gpu", profile)
                before.append(preflight)

            # ==== Stage 4: every image through the tower, once ====
            if len(shards["encode_shards"]) > 1:
                with dsl.ParallelFor(encode_shards, name="encode-shards") as shard:
                    part = encode_shard(
                        encoder=encoder, shard=shard, store=store, job_id=cached_job_id, dataset=validated
                    ).after(*before)
                    place(part, "encode_shard", profile, cache=True)
                before = [part]
            encode = encode_features(encoder=encoder, store=store, job_id=cached_job_id, dataset=validated)
            place(encode.after(*before), "encode_features", profile, cache=True)

            # ==== Stage 5: the arms ====
            with dsl.ParallelFor(experiments, name="arms", parallelism=profile.parallelism) as experiment:
                train = train_policy(
                    arm=experiment.arm,
                    overrides=experiment.overrides,
                    train_overrides=train_overrides,
                    encoder=encoder,
                    store=store,
                    job_id=job_id,
                    dataset=validated,
                    features=encode.outputs["features"],
                    restarts=profile.cluster.restarts if on_cluster else 0,
                )
                place(train, "train_policy", profile)
                rollouts = {"arm": experiment.arm, "episodes": eval_episodes, "seed": eval_seed, "store": store}
                rollouts |= {"job_id": job_id, "policy": train.outputs["policy"]}

                if len(shards["eval_shards"]) > 1:
                    with dsl.ParallelFor(eval_shards, name="eval-shards") as shard:
                        part = evaluate_shard(shard=shard, **rollouts)
                        place(part, "evaluate_shard", profile)
                    evaluate = evaluate_policy(shards=eval_shards, **rollouts).after(part)
                else:
                    evaluate = evaluate_policy(**rollouts)
                place(evaluate, "evaluate_policy", profile)

    return campaign


def _configuration(profile: Profile) -> dsl.PipelineConfig | None:
    """What Kubernetes is told of the whole run."""
    if profile.cluster is None or profile.cluster.ttl_s == 0:
        return None
    return dsl.PipelineConfig(ttl_seconds_after_finished=profile.cluster.ttl_s)
