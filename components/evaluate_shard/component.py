"""Stage 5, one of several at a time: a part of one arm's rollouts."""

from kfp import dsl

from components.images import GPU_IMAGE


@dsl.component(base_image=GPU_IMAGE, install_kfp_package=False)
def evaluate_shard(
    arm: str,
    shard: str,
    episodes: int,
    seed: int,
    store: str,
    job_id: str,
    policy: dsl.Input[dsl.Model],
    rollouts: dsl.Output[dsl.Artifact],
):
    """Run the policy on the shard's share of the seeds, or recognise that it was.

    Args:
        arm: Name of the experiment.
        shard: Which part of the seeds, such as 1/4.
        episodes: Number of rollouts of all shards.
        seed: Seed of the first rollout; the others follow.
        store: URI of the store.
        job_id: Run id of the campaign.
        policy: Pointer to the trained policy.
        rollouts: Pointer to the shard's episodes.
    """
    from roboimi.campaign_step import campaign_step, read_pointer, write_pointer

    with campaign_step(store, job_id, f"evaluate-{shard.replace('/', '-of-')}", arm) as step:
        from roboimi.shards import Shard
        from roboimi.vla.config import EvalConfig
        from roboimi.vla.eval_vla import evaluate
        from roboimi.vla.rollouts.eval_run import EvalRun

        settings = EvalConfig(episodes=episodes, first_seed=seed)
        run = EvalRun.from_store(step.store, read_pointer(policy.path)["uri"], settings).of_shard(Shard.parse(shard))
        step.note(checkpoint=run.checkpoint, rollouts=run.prefix)
        result = evaluate(run, store=step.store)
        write_pointer(rollouts.path, run.prefix, run.policy_digest, episodes=result.episodes)
        step.record["recognised"] = result.adopted
        step.record["result"] = f"{result.successes} of {result.episodes} succeeded"
