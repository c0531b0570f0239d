"""`roboimi encoder stage | show`: weights from the Hugging Face hub into a store, for machines that cannot reach it."""

import argparse
import sys
from pathlib import Path

EXAMPLE = "google/siglip2-base-patch16-256@<40 hex digits>"


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `encoder` with its commands to the parser of `roboimi`."""
    group = commands.add_parser("encoder", help="stage an encoder's weights in a store")
    actions = group.add_subparsers(required=True, metavar="COMMAND")
    stage = actions.add_parser("stage", help="bring the weights of a pinned repository into a store, once")
    stage.add_argument("encoder", metavar="NAME@REVISION", help=EXAMPLE)
    stage.add_argument("store", metavar="STORE", help="the campaigns' store: s3://bucket/prefix, or a folder")
    stage.add_argument("--from", dest="source", type=Path, metavar="FOLDER", help="that commit, downloaded elsewhere")
    stage.set_defaults(command=_stage)
    show = actions.add_parser(
        "show", help="what is staged in a store; with a name, its files as sha256sum -c reads them"
    )
    show.add_argument("store", metavar="STORE")
    show.add_argument("encoder", nargs="?", metavar="NAME@REVISION")
    show.set_defaults(command=_show)


def _stage(options: argparse.Namespace) -> int:
    from roboimi.storage.store import open_store
    from roboimi.vla.models.staged_weights import download, stage_weights

    spec = _pinned(options.encoder)
    store = open_store(options.store)
    if (folder := options.source) is None:
        print(f"fetching {spec.description} from the Hugging Face hub or its cache", file=sys.stderr)
        folder = download(spec)
    manifest = stage_weights(store, spec, folder.expanduser())
    print(f"{spec.name}@{spec.revision} is staged in {store.uri}: {_size(manifest.bytes)}, sha256:{manifest.digest}")
    return 0


def _show(options: argparse.Namespace) -> int:
    from roboimi.errors import EncoderError
    from roboimi.storage.store import open_store
    from roboimi.vla.models.staged_weights import list_staged, read_manifest

    store = open_store(options.store)
    if options.encoder is None:
        for manifest in (manifests := list_staged(store)):
            print(f"{manifest.name}@{manifest.revision}  {_size(manifest.bytes)}  sha256:{manifest.digest[:12]}")
        if not manifests:
            print(f"No encoder is staged in {store.uri}.")
        return 0
    spec = _pinned(options.encoder)
    manifest = read_manifest(store, spec)
    if manifest is None:
        raise EncoderError(
            f"{options.encoder} is not staged in {store.uri}: bring it there with roboimi encoder stage."
        )
    for name, file in manifest.files.items():
        print(f"{file.sha256}  {name}")
    return 0


def _pinned(text: str):
    from roboimi.errors import EncoderError
    from roboimi.vla.models.encoder_spec import EncoderSpec

    spec = EncoderSpec.parse(text)
    if spec.revision is None:
        raise EncoderError(f"{text!r} is here already, only what comes from the hub is staged: name it as {EXAMPLE}.")
    return spec


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
