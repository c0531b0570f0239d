"""Stage 5: train one arm's policy, go on training it, or recognise that it is trained."""

from kfp import dsl

from components.images import GPU_IMAGE


@dsl.component(base_image=GPU_IMAGE, install_kfp_package=False)
def train_policy(
    arm: str,
    overrides: list[str],
    train_overrides: list[str],
    encoder: str,
    store: str,
    job_id: str,
    dataset: dsl.Input[dsl.Dataset],
    features: dsl.Input[dsl.Dataset],
    policy: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    restarts: int = 0,
):
    """Train the policy that the overrides describe; a killed training goes on from its last checkpoint.

    Args:
        arm: Name of the experiment.
        overrides: Hydra overrides of this arm.
        train_overrides: Hydra overrides that all arms share; the arm's own come after them.
        encoder: Name of the vision tower.
        store: URI of the store.
        job_id: Run id of the campaign.
        dataset: Pointer to the validated dataset.
        features: Pointer to the feature cache.
        policy: Pointer to the trained policy.
        metrics: Loss, steps, seconds and size; the same names for every arm.
        restarts: How often in a row, without a new checkpoint, a crashed training is started again; 0: it is not, and
            runs in the step's own process.
    """
    from functools import partial

    from roboimi.campaign_step import campaign_step, read_pointer, write_pointer

    with campaign_step(store, job_id, "train", arm, overrides=[*train_overrides, *overrides]) as step:
        from roboimi.vla.config import TrainRun, training_key
        from roboimi.vla.train_vla import train, training_prefix
        from roboimi.vla.training.supervisor import Request, supervise

        data, cache = read_pointer(dataset.path), read_pointer(features.path)
        run = TrainRun.from_overrides([*train_overrides, *overrides], dataset=data["uri"], encoder=encoder)
        training = training_prefix(training_key(run.fingerprint(data["digest"], cache["digest"])))
        # Before the training, so that the report can show how far one came that was killed.
        step.note(training=training)
        claimant = f"{step.record['job_id']}/{arm}"
        if restarts:
            request = Request([*train_overrides, *overrides], data["uri"], encoder, store, claimant)
            again = partial(step.add, "restarts")
            result = supervise(request, step.store, training, restarts=restarts, on_restart=again)
        else:
            result = train(run, store=step.store, claimant=claimant)
        loss = "none" if result.loss is None else f"{result.loss:.4f}"
        step.record |= {"checkpoint": result.checkpoint, "recognised": result.adopted}
        step.record |= {"tracking": result.tracking, "result": f"{result.steps} steps, loss {loss}"}
        write_pointer(policy.path, result.checkpoint, result.policy_digest, training=result.training)
        for name in ("loss", "validation_loss", "steps", "skipped", "seconds", "parameters"):
            if getattr(result, name) is not None:
                metrics.log_metric(name, float(getattr(result, name)))
