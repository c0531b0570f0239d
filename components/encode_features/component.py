"""Stage 4: every image of the dataset through the frozen vision tower, once."""

from kfp import dsl

from components.images import GPU_IMAGE


@dsl.component(base_image=GPU_IMAGE, install_kfp_package=False)
def encode_features(
    encoder: str,
    store: str,
    job_id: str,
    dataset: dsl.Input[dsl.Dataset],
    features: dsl.Output[dsl.Dataset],
):
    """Fill the feature cache of this dataset under this encoder, or recognise the one that is there.

    Args:
        encoder: Name of the vision tower.
        store: URI of the store.
        job_id: Run id of the campaign; empty to take it from the pod.
        dataset: Pointer to the validated dataset.
        features: Pointer to the feature cache.
    """
    from roboimi.campaign_step import campaign_step, read_pointer, write_pointer

    with campaign_step(store, job_id, "encode", encoder=encoder) as step:
        from roboimi.vla.data.manifest import resolve_dataset
        from roboimi.vla.encode_features import encode_features as run_encoder

        ref = resolve_dataset(read_pointer(dataset.path)["uri"])
        encoded = run_encoder(step.store, ref, encoder)
        cache = encoded.document
        write_pointer(features.path, encoded.prefix, cache["encoder"]["digest"], feature_dim=cache["feature_dim"])
        step.record |= {"features": encoded.prefix, "encoder_digest": cache["encoder"]["digest"]}
        step.record["recognised"] = encoded.recognised
        step.record["result"] = f"{cache['frames']} frames x {cache['num_views']} views, {cache['feature_dim']} wide"
