"""Stage 5: roll one arm's policy out in simulation, on the same seeds as every other arm's."""

from kfp import dsl

from components.images import GPU_IMAGE


@dsl.component(base_image=GPU_IMAGE, install_kfp_package=False)
def evaluate_policy(
    arm: str,
    episodes: int,
    seed: int,
    store: str,
    job_id: str,
    policy: dsl.Input[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    shards: list[str] = [],  # noqa: B006 (a default of the compiled component)
):
    """Run the policy on `episodes` seeds from `seed` on, or recognise that it was.

    Args:
        arm: Name of the experiment.
        episodes: Number of rollouts.
        seed: Seed of the first rollout; the others follow.
        store: URI of the store.
        job_id: Run id of the campaign.
        policy: Pointer to the trained policy.
        metrics: Success rate, episodes, latency; the same names for every arm.
        shards: The shards that have rolled out parts of the seeds; their episodes are taken, missing ones are run.
    """
    from roboimi.campaign_step import campaign_step, read_pointer

    with campaign_step(store, job_id, "evaluate", arm) as step:
        from roboimi.shards import Shard
        from roboimi.vla.config import EvalConfig
        from roboimi.vla.eval_vla import evaluate
        from roboimi.vla.rollouts.eval_run import EvalRun

        settings = EvalConfig(episodes=episodes, first_seed=seed)
        run = EvalRun.from_store(step.store, read_pointer(policy.path)["uri"], settings, videos=2)
        step.note(checkpoint=run.checkpoint, rollouts=run.prefix)
        result = evaluate(run, store=step.store, parts=[run.of_shard(Shard.parse(shard)) for shard in shards])
        unknown = f", {result.unknown} unknown" if result.unknown else ""
        step.record["recognised"] = result.adopted
        step.record["result"] = f"{result.successes} of {result.episodes} succeeded{unknown}"
        names = ("success_rate", "successes", "episodes", "unknown", "mean_steps", "latency_ms", "control_ms")
        for name in names:
            metrics.log_metric(name, float(getattr(result, name)))
