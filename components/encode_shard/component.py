"""Stage 4, one of several at a time: a part of the dataset's images through the frozen vision tower."""

from kfp import dsl

from components.images import GPU_IMAGE


@dsl.component(base_image=GPU_IMAGE, install_kfp_package=False)
def encode_shard(
    encoder: str,
    shard: str,
    store: str,
    job_id: str,
    dataset: dsl.Input[dsl.Dataset],
    cache: dsl.Output[dsl.Dataset],
):
    """Add every n-th episode to the feature cache; whoever finds all of them there completes it.

    Args:
        encoder: Name of the vision tower.
        shard: Which part, such as 1/4.
        store: URI of the store.
        job_id: Run id of the campaign; empty to take it from the pod.
        dataset: Pointer to the validated dataset.
        cache: Pointer to the feature cache, which may still lack what other shards add.
    """
    from roboimi.campaign_step import campaign_step, read_pointer, write_pointer

    with campaign_step(store, job_id, f"encode-{shard.replace('/', '-of-')}", encoder=encoder) as step:
        from roboimi.shards import Shard
        from roboimi.vla.data.manifest import resolve_dataset
        from roboimi.vla.encode_features import encode_features as run_encoder

        ref = resolve_dataset(read_pointer(dataset.path)["uri"])
        part = Shard.parse(shard)
        encoded = run_encoder(step.store, ref, encoder, shard=(part.index, part.count))
        write_pointer(cache.path, encoded.prefix, ref.digest, complete=encoded.document is not None)
        step.record |= {"features": encoded.prefix, "recognised": encoded.recognised}
        step.record["result"] = f"{encoded.encoded_episodes} episodes encoded"
