"""Stage 3, on the cluster: a GPU node is what it should be, before days of training are spent on it."""

from kfp import dsl

from components.images import GPU_IMAGE


@dsl.component(base_image=GPU_IMAGE, install_kfp_package=False)
def preflight_gpu(
    encoder: str,
    train_overrides: list[str],
    code_revision: str,
    require_gpu: bool,
    store: str,
    job_id: str,
    dataset: dsl.Input[dsl.Dataset],
    summary: dsl.Output[dsl.Markdown],
):
    """Fail within two minutes where CUDA, the headless renderer, the policy or the code is not what it should be.

    Args:
        encoder: Name of the vision tower.
        train_overrides: Hydra overrides that all arms share.
        code_revision: Git revision that the campaign was submitted with; empty: not checked.
        require_gpu: Whether CUDA and a GPU's renderer have to be there; without, the rest is checked on the CPU.
        store: URI of the store.
        job_id: Run id of the campaign.
        dataset: Pointer to the validated dataset.
        summary: What was found, for people.
    """
    from pathlib import Path

    from roboimi.campaign_step import campaign_step, read_pointer

    with campaign_step(store, job_id, "preflight", encoder=encoder) as step:
        from roboimi.vla.data.manifest import resolve_dataset
        from roboimi.vla.preflight import preflight

        ref = resolve_dataset(read_pointer(dataset.path)["uri"])
        found = preflight(ref, encoder, train_overrides, code_revision, require_gpu=require_gpu)
        step.record |= {"preflight": found, "gpu": found["device"]}
        step.record["result"] = f"{found['device']}, {found['renderer']}, {found['seconds_per_step']:.3f} s a step"
        lines = [f"- {name}: {value}" for name, value in found.items()]
        Path(summary.path).write_text("\n".join(["# GPU preflight", "", *lines, ""]))
