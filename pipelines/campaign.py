"""The campaign as a Kubeflow pipeline: one factory, whose result compiles for a cluster and runs on one machine.

Stages:
    1. validate_dataset       the episodes are what their manifest says, and fit for training
    2. smoke_test_encoder     the frozen vision tower works, and sees
    3. preflight_gpu          cluster only: CUDA, the headless renderer and the code are what they should be
    4. encode_features        every image through the tower, once
    5. for each arm           train_policy, then evaluate_policy in simulation
    6. compare_experiments    the exit task: the report, whatever happened
"""

from collections.abc import Callable, Sequence
from typing import Any

from kfp import dsl

from components.compare_experiments.component import compare_experiments
from components.encode_features.component import encode_features
from components.evaluate_policy.component import evaluate_policy
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

    @dsl.pipeline(name=PIPELINE_NAME, description=DESCRIPTION)
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

            # ==== Stage 2: the encoder ====
            smoke = smoke_test_encoder(
                encoder=encoder,
                train_overrides=train_overrides,
                store=store,
                job_id=cached_job_id,
                dataset=validate.outputs["validated"],
            )
            place(smoke, "smoke_test_encoder", profile, cache=True)
            gates = [smoke]

            # ==== Stage 3: the GPU node (cluster only) ====
            if on_cluster:
                preflight = preflight_gpu(
                    encoder=encoder,
                    train_overrides=train_overrides,
                    code_revision=code_revision,
                    store=store,
                    job_id=job_id,
                    dataset=validate.outputs["validated"],
                )
                place(preflight, "preflight_gpu", profile)
                gates.append(preflight)

            # ==== Stage 4: every image through the tower, once ====
            encode = encode_features(
                encoder=encoder, store=store, job_id=job_id, dataset=validate.outputs["validated"]
            ).after(*gates)
            place(encode, "encode_features", profile)

            # ==== Stage 5: the arms ====
            with dsl.ParallelFor(experiments, name="arms", parallelism=profile.parallelism) as experiment:
                train = train_policy(
                    arm=experiment.arm,
                    overrides=experiment.overrides,
                    train_overrides=train_overrides,
                    encoder=encoder,
                    store=store,
                    job_id=job_id,
                    dataset=validate.outputs["validated"],
                    features=encode.outputs["features"],
                )
                place(train, "train_policy", profile)

                evaluate = evaluate_policy(
                    arm=experiment.arm,
                    episodes=eval_episodes,
                    seed=eval_seed,
                    store=store,
                    job_id=job_id,
                    policy=train.outputs["policy"],
                )
                place(evaluate, "evaluate_policy", profile)

    return campaign
