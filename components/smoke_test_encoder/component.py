"""Stage 2: the frozen vision tower works, training reads what rollouts see, and it is not blind."""

from kfp import dsl

from components.images import GPU_IMAGE


@dsl.component(base_image=GPU_IMAGE, install_kfp_package=False)
def smoke_test_encoder(
    encoder: str,
    train_overrides: list[str],
    store: str,
    job_id: str,
    dataset: dsl.Input[dsl.Dataset],
    summary: dsl.Output[dsl.Markdown],
):
    """Load the encoder, compare its cached and its online path, render the task, probe the features for the object.

    Args:
        encoder: Name of the vision tower, NAME@REVISION, a folder, or standin.
        train_overrides: Hydra overrides that all arms share; they choose the task.
        store: URI of the store.
        job_id: Run id of the campaign; empty to take it from the pod.
        dataset: Pointer to the validated dataset.
        summary: What was measured, for people.
    """
    import json
    from pathlib import Path

    from roboimi.campaign_step import campaign_step, read_pointer

    with campaign_step(store, job_id, "smoke", encoder=encoder) as step:
        from roboimi.vla.config import TrainRun
        from roboimi.vla.data.manifest import resolve_dataset
        from roboimi.vla.smoke_encoder import smoke_test_encoder as run_smoke_test

        ref = resolve_dataset(read_pointer(dataset.path)["uri"])
        task = TrainRun.from_overrides(train_overrides, dataset=ref.text, encoder=encoder).task
        test = run_smoke_test(step.store, ref, encoder, task)
        step.record |= {"smoke": test.document, "warnings": test.document["warnings"]}
        step.record |= {"recognised": test.recognised, "result": test.sentence}
        text = json.dumps(test.document, indent=2, sort_keys=True)
        Path(summary.path).write_text(f"# Encoder smoke test\n\n{test.sentence}\n\n```json\n{text}\n```\n")
