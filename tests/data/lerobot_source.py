"""A small LeRobotDataset v3 written to the published format by nothing of this project: pyarrow and PyAV alone.

Several episodes a file, two cameras, and every part can be changed or left out, to plant faults.
"""

import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FPS = 10
LENGTHS = (6, 4, 5)
CAMERAS = ("top", "wrist")
SIZE = (32, 48)
KEYS = {camera: f"observation.images.{camera}" for camera in CAMERAS}


def picture(camera: str, episode: int, frame: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W, 3) uint8: red for the top camera, blue for the wrist, and a bright bar that says which frame it is."""
    image = np.zeros((*size, 3), np.uint8)
    image[..., 0 if camera == "top" else 2] = 100 + 30 * episode
    image[:, 4 * frame : 4 * frame + 4] = 240
    return image


def rows(episode: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(T, 3) state and (T, 2) action, float32."""
    rng = np.random.default_rng(episode)
    return rng.normal(size=(length, 3)).astype(np.float32), rng.normal(size=(length, 2)).astype(np.float32)


def write_lerobot(root: Path, *, lengths=LENGTHS, episodes_a_file=None, as_images=False, splits=None) -> Path:
    """Write the dataset into `root`, all episodes in one file a kind unless `episodes_a_file` says how many."""
    per_file = episodes_a_file or len(lengths)
    cameras = {key: {"dtype": "image" if as_images else "video", "shape": [*SIZE, 3]} for key in KEYS.values()}
    features = {
        "observation.state": {"dtype": "float32", "shape": [3], "names": {"motors": ["a", "b", "c"]}},
        "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
        **cameras,
        **{key: {"dtype": "int64", "shape": [1]} for key in ("frame_index", "episode_index", "index", "task_index")},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    }
    write_info(root, features, lengths, splits)
    pq.write_table(pa.table({"task_index": [0], "task": ["move"]}), root / "meta/tasks.parquet")
    meta, first = [], 0
    for file, begin in enumerate(range(0, len(lengths), per_file)):
        group = range(begin, min(begin + per_file, len(lengths)))
        tables, start = [], 0
        for episode in group:
            length = lengths[episode]
            tables.append(data_table(episode, length, first, as_images))
            row = {"episode_index": episode, "tasks": ["move"], "length": length}
            row |= {"data/chunk_index": 0, "data/file_index": file}
            row |= {"dataset_from_index": first, "dataset_to_index": first + length}
            for key in () if as_images else KEYS.values():
                row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": file}
                row |= {
                    f"videos/{key}/from_timestamp": start / FPS,
                    f"videos/{key}/to_timestamp": (start + length) / FPS,
                }
            meta.append(row)
            first, start = first + length, start + length
        write_parquet(pa.concat_tables(tables), root / f"data/chunk-000/file-{file:03d}.parquet")
        for camera in () if as_images else CAMERAS:
            pictures = [picture(camera, episode, frame) for episode in group for frame in range(lengths[episode])]
            write_video(video_path(root, camera, file), pictures)
    write_parquet(pa.Table.from_pylist(meta), root / "meta/episodes/chunk-000/file-000.parquet")
    return root


def write_info(root: Path, features: dict, lengths, splits) -> None:
    (root / "meta").mkdir(parents=True)
    info = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "features": features,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "robot_type": "two-arm",
        "splits": splits or {"train": f"0:{len(lengths)}"},
    }
    (root / "meta/info.json").write_text(json.dumps(info))


def data_table(episode: int, length: int, first: int, as_images: bool) -> pa.Table:
    state, action = rows(episode, length)
    columns = {
        "observation.state": pa.array(list(state), pa.list_(pa.float32(), 3)),
        "action": pa.array(list(action), pa.list_(pa.float32(), 2)),
        "next.reward": pa.array(np.zeros(length, np.float32)),
        "timestamp": pa.array((np.arange(length) / FPS).astype(np.float32)),
        "frame_index": np.arange(length),
        "episode_index": np.full(length, episode),
        "index": first + np.arange(length),
        "task_index": np.zeros(length, np.int64),
    }
    for camera in CAMERAS if as_images else ():
        columns[KEYS[camera]] = [{"bytes": png(picture(camera, episode, f)), "path": None} for f in range(length)]
    return pa.table(columns)


def png(image: np.ndarray) -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def video_path(root: Path, camera: str, file: int = 0) -> Path:
    return root / f"videos/{KEYS[camera]}/chunk-000/file-{file:03d}.mp4"


def write_video(path: Path, pictures: list[np.ndarray], fps: int = FPS, numbers: list[int] | None = None) -> None:
    """Encode pictures at the times `numbers` / fps (0, 1, 2, ... where not given)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "12", "bf": "0"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for number, image in zip(numbers or range(len(pictures)), pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def all_pictures(camera: str, lengths=LENGTHS) -> list[np.ndarray]:
    return [picture(camera, episode, frame) for episode, length in enumerate(lengths) for frame in range(length)]


def edit_info(root: Path, **changes) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_table(path: Path, column: str, change) -> None:
    """Replace a column by `change(values)`, values as a list."""
    table = pq.read_table(path)
    index = table.schema.get_field_index(column)
    field = table.schema.field(index)
    pq.write_table(table.set_column(index, field, pa.array(change(table.column(column).to_pylist()), field.type)), path)
