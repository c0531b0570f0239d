"""The commands `roboimi import` and `roboimi export`: datasets of other projects in, ours out."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from roboimi.errors import ConfigError
from roboimi.vla.data.contract import STORED_IMAGE_SIZE

if TYPE_CHECKING:
    from roboimi.vla.data.manifest import DatasetRef

EPILOG = """\
examples:
  roboimi import act ~/aloha_mobile_cabinet datasets/cabinet     decode JPEG frames, resize to 256x256
  roboimi import act ~/episodes                                  uncompressed episodes stay as and where they are
  roboimi import lerobot ~/lerobot/transfer_cube datasets/cube
  roboimi import lerobot lerobot/aloha_sim_transfer_cube_human datasets/cube --revision v3.0
"""


def register(commands: argparse._SubParsersAction) -> None:
    """Add both commands to the parser of all commands."""
    importer = commands.add_parser(
        "import",
        help="make a dataset of ACT or LeRobot episodes",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).add_subparsers(required=True, metavar="FORMAT")

    act = importer.add_parser("act", help="ALOHA/ACT episodes in HDF5, compressed ones included")
    act.add_argument("path", type=Path, metavar="FOLDER", help="holds episode_<number>.hdf5")
    act.add_argument(
        "out", type=Path, nargs="?", metavar="OUT", help="the converted dataset (default: episodes stay as they are)"
    )
    _camera_options(act)
    act.add_argument("--fps", type=int, metavar="HZ", help="the rate, where the episodes do not tell it")
    act.add_argument(
        "--jpeg-colours",
        choices=("bgr", "rgb"),
        help="what the JPEG files hold: bgr as ALOHA's recorders write them, rgb where colours come out exchanged "
        "(default: bgr)",
    )
    act.set_defaults(command=_import_act)

    lerobot = importer.add_parser("lerobot", help="a LeRobotDataset v3 in a folder or on the hub")
    lerobot.add_argument("path", metavar="FOLDER|OWNER/NAME")
    lerobot.add_argument(
        "out", type=Path, nargs="?", metavar="OUT", help="the dataset that is made (default: datasets/NAME)"
    )
    _camera_options(lerobot)
    lerobot.add_argument("--revision", metavar="COMMIT", help="commit or tag, required for a dataset of the hub")
    lerobot.add_argument("--state", default="observation.state", metavar="FEATURE", help="the robot's state")
    lerobot.add_argument("--action", default="action", metavar="FEATURE", help="the action")
    lerobot.add_argument("--sim", action="store_true", help="the episodes are simulated")
    lerobot.set_defaults(command=_import_lerobot)

    exporter = commands.add_parser("export", help="write a dataset in another project's format")
    formats = exporter.add_subparsers(required=True, metavar="FORMAT")
    lerobot = formats.add_parser("lerobot", help="a LeRobotDataset v3: Parquet and MP4")
    lerobot.add_argument("dataset", metavar="PATH[@sha256:DIGEST]")
    lerobot.add_argument("out", type=Path, metavar="OUT", help="a folder that is not there yet")
    lerobot.add_argument(
        "--codec", choices=("libx264", "libsvtav1"), default="libx264", help="H.264 or AV1 (default: libx264)"
    )
    lerobot.add_argument("--crf", type=int, metavar="N", help="smaller is closer to the original (default: 18, AV1 30)")
    lerobot.add_argument("--task", metavar="TEXT", help="what the robot does (default: the episodes' attribute task)")
    lerobot.add_argument("--robot-type", metavar="NAME", help="for meta/info.json")
    lerobot.set_defaults(command=_export_lerobot)


def image_size(text: str) -> tuple[int, int] | str:
    """`HxW` as (height, width), or `original`."""
    height, _, width = text.partition("x")
    if text != "original" and not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give HEIGHTxWIDTH (256x256) or original")
    return text if text == "original" else (int(height), int(width))


def _camera_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cameras", nargs="+", metavar="NAME", help="in the order of the view axis (default: all)")
    parser.add_argument(
        "--image-size",
        type=image_size,
        metavar="HxW",
        help="resize frames to this, or original (default: 256x256)",
    )


def _chosen_size(options: argparse.Namespace) -> tuple[int, int] | None:
    return None if options.image_size == "original" else options.image_size or STORED_IMAGE_SIZE


def _import_act(options: argparse.Namespace) -> int:
    if options.out is None:
        from roboimi.vla.data.import_episodes import ingest

        if options.image_size is not None or options.jpeg_colours is not None:
            raise ConfigError("Episodes that stay as they are keep their images: name OUT, where converted ones go.")

        ref = ingest(options.path, cameras=options.cameras, default_fps=options.fps)
    else:
        from roboimi.vla.data.import_act import import_act

        ref = import_act(
            options.path,
            options.out,
            cameras=options.cameras,
            default_fps=options.fps,
            image_size=_chosen_size(options),
            colour_order=options.jpeg_colours or "bgr",
        )
    return _show(ref)


def _import_lerobot(options: argparse.Namespace) -> int:
    from roboimi.vla.data.lerobot_hub import locate
    from roboimi.vla.data.lerobot_import import import_lerobot

    root, origin = locate(options.path, options.revision)
    ref = import_lerobot(
        root,
        options.out or Path("datasets") / Path(options.path).name,
        cameras=options.cameras,
        image_size=_chosen_size(options),
        state=options.state,
        action=options.action,
        simulated=options.sim,
        origin=origin,
    )
    return _show(ref)


def _export_lerobot(options: argparse.Namespace) -> int:
    from roboimi.vla.data.lerobot_export import export_lerobot
    from roboimi.vla.data.manifest import resolve_dataset

    ref = resolve_dataset(options.dataset)
    out = export_lerobot(
        ref, options.out, codec=options.codec, crf=options.crf, task=options.task, robot_type=options.robot_type
    )
    print(out)
    return 0


def _show(ref: "DatasetRef") -> int:
    """What was inferred, for a person to check; the reference on standard output."""
    contract, source = ref.contract, ref.manifest.source
    lines = [
        f"{len(ref.manifest.episodes)} episodes, {sum(entry.frames for entry in ref.manifest.episodes)} frames at "
        f"{contract.fps} Hz ({source.get('fps_from', 'recorded')})",
        f"state {contract.state_dim}, action {contract.action_dim}, cameras {', '.join(contract.cameras)} at "
        f"{contract.image_height}x{contract.image_width}",
    ]
    if source.get("colour_order"):
        lines.append(f"JPEG colours taken as {source['colour_order']}: look at a frame, or give --jpeg-colours")
    if source.get("left_out"):
        lines.append(f"left out: {', '.join(source['left_out'])}")
    print(*lines, sep="\n", file=sys.stderr)
    print(ref.text)
    return 0
