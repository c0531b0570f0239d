"""From options to a run on a Kubeflow Pipelines server: everything is checked first, then it is started.

Checks come in the order of what they cost: this checkout, the dataset and the arms, the server, Kubernetes. Until all
of them are through, nothing is made anywhere. Then the pipeline's version is uploaded, older campaigns are superseded
where that is asked for, and the run is made last.
"""

import hashlib
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines import checks
from pipelines.arguments import CampaignOptions, DatasetName, campaign_arguments, choose_arms, shared_overrides
from pipelines.arms import Arm
from pipelines.cluster.campaign_runs import CampaignRun, run_name
from pipelines.cluster.kfp_api import KfpApi
from pipelines.cluster.kubernetes_api import Blind, CannotLook, Kubernetes
from pipelines.cluster.retry_policy import retried_failures
from pipelines.cluster.supersede import supersede
from pipelines.profiles import Profile, load_profile
from roboimi.errors import ConfigError
from roboimi.storage.launch_record import code_revision
from roboimi.storage.store import open_store
from roboimi.vla.config import TrainRun
from roboimi.vla.data.manifest import resolve_dataset
from roboimi.vla.models.encoder_spec import EncoderSpec
from roboimi.vla.models.staged_weights import read_manifest

DIRTY = "-dirty"
_PUSHED = re.compile(r"s3://[^@]+@sha256:(?P<digest>[0-9a-f]{64})")
_PINNED = re.compile(r".+@sha256:[0-9a-f]{64}")

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class SubmitOptions(CampaignOptions):
    """The options of the command.

    Attributes:
        name: of the campaign; runs of one name can supersede each other.
        experiment: of KFP, to which the run belongs.
        pipeline_root: where KFP keeps the small artifacts that pass between steps; None: the server's default.
        service_account: as which the pods run; None: the server's default.
        cpu_image, gpu_image: None: the profile's.
        allow_dirty: whether changes that are not committed are accepted, and recorded as `-dirty`.
        store_check: whether the dataset's manifest is read from the store.
    """

    name: str
    experiment: str
    pipeline_root: str | None
    service_account: str | None
    cpu_image: str | None
    gpu_image: str | None
    allow_dirty: bool
    store_check: bool


@dataclass(frozen=True)
class Plan:
    """A campaign that has passed the checks that need no server.

    Attributes:
        options: as they were given.
        profile: with the images of the options.
        arms: to be trained.
        arguments: of the pipeline.
        revision: of the code, 40 hex digits and perhaps `-dirty`.
    """

    options: SubmitOptions
    profile: Profile
    arms: list[Arm]
    arguments: dict[str, Any]
    revision: str


def make_plan(options: SubmitOptions, say: Say) -> Plan:
    """Check what can be known without a server.

    Raises:
        ConfigError: the checkout, the arms or the overrides cannot be what is meant.
        DataError: the dataset is not named by its digest, or the store does not have it.
        StoreError: the store cannot be read.
    """
    revision = checked_revision(options.allow_dirty)
    profile = load_profile(options.profile)
    if profile.cluster is None:
        raise ConfigError(f"Profile {profile.name!r} runs on this machine: choose one of a cluster, or use `run`.")
    if options.cpu_image or options.gpu_image:
        profile = profile.with_images(options.cpu_image, options.gpu_image)
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", options.name):
        raise ConfigError(f"The campaign's name {options.name!r} must be 1 to 63 of a-z, 0-9 and . _ -: change --name.")
    defaults = profile.defaults
    store = options.store or defaults.store
    if not store.startswith("s3://"):
        raise ConfigError(f"Pods cannot see the store {store!r}: give --store s3://bucket/prefix.")
    encoder = options.encoder or defaults.encoder
    spec = EncoderSpec.parse(encoder)
    if spec.folder is not None and not spec.is_standin:
        raise ConfigError(f"Pods cannot see the folder {encoder!r}: name the encoder as REPOSITORY@REVISION.")
    arms = choose_arms(options, defaults)
    shared = shared_overrides(options, defaults)
    name = dataset_name(options.dataset)
    ref = resolve_dataset(name.text) if options.store_check else None
    if ref is None:
        _compose(arms, shared, name.text, encoder)
        say("note     the store was not looked at (--no-store-check): a missing dataset fails in the first step")
    else:
        arms, left_out = checks.usable_arms(arms, ref)
        for arm in left_out:
            say(f"note     {arm.name} is left out: the dataset has no environment state")
        checks.check_arms(arms, shared, ref, encoder)
    arguments = campaign_arguments(options, defaults, arms, ref or name, encoder, store)
    arguments |= {**profile.shard_arguments(), "code_revision": revision}
    say(f"code     {revision}")
    say(f"data     {name.text}" + (f" ({len(ref.manifest.episodes)} episodes)" if ref else ""))
    say(f"encoder  {spec.description}{_where_weights_are(spec, store) if ref else ''}")
    say(f"arms     {', '.join(arm.name for arm in arms)}")
    images = profile.cluster.images
    for image in dict.fromkeys((images.cpu, images.gpu)):
        pinned = "" if _PINNED.fullmatch(image) else " (not by digest: a node may hold another image of this name)"
        say(f"image    {image}{pinned}")
    return Plan(options, profile, arms, arguments, revision)


def _where_weights_are(spec: EncoderSpec, store: str) -> str:
    """The end of a line on an encoder of the hub: whether pods find it in the store."""
    if spec.revision is None:
        return ""
    if read_manifest(open_store(store), spec) is not None:
        return ", staged in the store"
    return ", not staged: every pod asks the hub; `roboimi encoder stage` brings it into the store, once"


def checked_revision(allow_dirty: bool) -> str:
    """The revision of the code, which the images must hold too.

    Raises:
        ConfigError: it is not known, or files differ from it.
    """
    revision = code_revision()
    if revision is None:
        raise ConfigError("This is no git checkout: submit from one, so that the run tells which code it ran.")
    if revision.endswith(DIRTY) and not allow_dirty:
        raise ConfigError(
            "This checkout has changes that are not committed: commit them and build the images of that revision, or "
            f"give --allow-dirty, with images of such a checkout, and the run is recorded as {revision[:7]}{DIRTY}."
        )
    return revision


def check_cluster(plan: Plan, kubernetes: Kubernetes | Blind, say: Say) -> None:
    """Check what Kubernetes can tell beforehand: the namespace, and the secrets without which no pod would start.

    Raises:
        ConfigError: one is not there.
    """
    secrets = plan.profile.cluster.secrets
    try:
        if not kubernetes.has_namespace():
            raise ConfigError(
                f"There is no namespace {kubernetes.namespace!r} in {kubernetes.where}: correct --namespace, or choose "
                "another cluster by --kube-context."
            )
        keys = {secret.name: kubernetes.secret_keys(secret.name) for secret in secrets}
    except CannotLook as error:
        say(f"note     secrets were not looked at: {error}; a missing one shows in `status`")
        return
    missing = [secret.name for secret in secrets if secret.required and keys[secret.name] is None]
    if missing:
        raise ConfigError(
            f"Namespace {kubernetes.namespace!r} has no secret {', '.join(missing)} (looked in {kubernetes.where}): "
            "make it as manifests/README.md says, or give the namespace of the campaign's pods by --namespace."
        )
    for secret in secrets:
        found = keys[secret.name]
        # A key that is not there is as bad as a secret that is not, except where the whole of it is optional.
        if secret.required and (lacking := sorted(secret.env.keys() - found)):
            raise ConfigError(f"Secret {secret.name} in {kubernetes.namespace!r} lacks {', '.join(lacking)}: add that.")
    told = [f"{name} {'is not (optional)' if found is None else 'is there'}" for name, found in keys.items()]
    say(f"secrets  {', '.join(told)}")


def start(
    plan: Plan, api: KfpApi, kubernetes: Kubernetes | Blind, controller_namespaces: list[str], say: Say
) -> CampaignRun:
    """Check the cluster, then start the campaign.

    Args:
        plan: what was checked already.
        api: the server.
        kubernetes: of the pods' namespace.
        controller_namespaces: where the workflow controller's settings may be.
        say: gets a line a fact.

    Returns:
        The run.
    """
    from pipelines.campaign import DESCRIPTION, PIPELINE_NAME

    options = plan.options
    check_cluster(plan, kubernetes, say)
    say(f"retries  {retried_failures(kubernetes, controller_namespaces)}")
    with tempfile.TemporaryDirectory(prefix="roboimi-submit-") as folder:
        compiled, version = compile_version(plan, Path(folder))
        experiment_id = api.make_experiment(options.experiment)
        pipeline_id = api.make_pipeline(PIPELINE_NAME, DESCRIPTION)
        version_id, uploaded = api.make_version(pipeline_id, version, compiled, f"code {plan.revision}")
    say(f"pipeline {PIPELINE_NAME}, version {version} ({'uploaded' if uploaded else 'found'})")
    arguments = plan.arguments
    if options.supersede:
        stopped = supersede(api, kubernetes, experiment_id, options.name, say=say)
        if not stopped:
            say(f"note     nothing to supersede: no run of {options.name} is active in {options.experiment}")
        overrides = shared_overrides(replace(options, supersede=bool(stopped)), plan.profile.defaults)
        arguments = {**arguments, "train_overrides": overrides}
    run = api.make_run(
        run_name(options.name, version),
        experiment_id=experiment_id,
        pipeline_id=pipeline_id,
        version_id=version_id,
        arguments=arguments,
        pipeline_root=options.pipeline_root,
        service_account=options.service_account,
    )
    return CampaignRun.of(run)


def compile_version(plan: Plan, folder: Path) -> tuple[Path, str]:
    """Compile the pipeline and name its version.

    Returns:
        The compiled file, and `<git sha7>-<config hash8>`: equal code and configuration give an equal name.
    """
    from pipelines.compile import compile_campaign

    compiled = compile_campaign(plan.profile, folder / "campaign.yaml", plan.arms)
    config = hashlib.sha256(compiled.read_bytes()).hexdigest()[:8]
    dirty = DIRTY if plan.revision.endswith(DIRTY) else ""
    return compiled, f"{plan.revision[:7]}{dirty}-{config}"


def dataset_name(text: str | None) -> DatasetName:
    """The dataset as pods can find it.

    Raises:
        ConfigError: it is not named by its place in an object store and its digest.
    """
    match = _PUSHED.fullmatch(text or "")
    if match is None:
        raise ConfigError(
            f"Pods need the dataset by its content in a store{f', not {text!r}' if text else ''}: give --dataset "
            "s3://BUCKET/NAME@sha256:DIGEST, as `roboimi dataset push` prints it."
        )
    return DatasetName(match.string, match["digest"])


def _compose(arms: list[Arm], shared: list[str], dataset: str, encoder: str) -> None:
    for arm in arms:
        try:
            TrainRun.from_overrides([*shared, *arm.overrides], dataset=dataset, encoder=encoder)
        except ConfigError as error:
            raise ConfigError(f"Arm {arm.name!r}: {error}") from error
