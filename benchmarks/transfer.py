"""Upload and download of a base-size checkpoint against MinIO's own client `mc`, alternating, on one server.

    scripts/tools.sh --benchmark
    .venv/bin/python benchmarks/transfer.py [--rounds 5]

Model and averaged weights of 90 MB and an optimiser's state of 180 MB, random bytes. What each side does is what a user
gets from it: `mc cp` copies, the store also takes and checks SHA-256 sums and commits. A new process for each.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests")]

from minio_server import MinioServer, find_tool  # noqa: E402

FILES = {"model.safetensors": 90_000_000, "ema.safetensors": 90_000_000, "optimizer.safetensors": 180_000_000}

PLACE = """
import sys
from roboimi.storage.store import open_store
print(open_store(sys.argv[1]).folder("checkpoint"))
"""

PROGRAM = """
import sys, time
from roboimi.storage.store import open_store
store, begin = open_store(sys.argv[2]), time.perf_counter()
if sys.argv[1] == "upload":
    store.publish("checkpoint", "MANIFEST.json", {"step": 1})
else:
    store.fetch("checkpoint")
print(time.perf_counter() - begin)
"""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="transfer-") as folder:
        root = Path(folder)
        source = root / "source"
        source.mkdir()
        for name, size in FILES.items():
            (source / name).write_bytes(os.urandom(size))
        server = MinioServer(root / "drive")
        server.start()
        try:
            report(measure(server, root, source, rounds))
        finally:
            server.stop()


def measure(server: MinioServer, root: Path, source: Path, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of each round by (direction, who)."""
    environment = os.environ | {"MC_CONFIG_DIR": str(root / "mc"), "MC_HOST_here": with_key(server)}
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        # A round of its own bucket and cache; the first warms the machine and does not count. Who begins changes.
        bucket, cache = server.new_bucket(), root / f"cache{number}"
        sides = {
            "mc cp": lambda way, bucket=bucket: with_mc(environment, way, source, root / "back", bucket),
            "store": lambda way, bucket=bucket, cache=cache: with_store(server, way, source, bucket, cache),
        }
        for way in ("upload", "download"):
            for who in sorted(sides, reverse=number % 2 == 1):
                seconds = sides[who](way)
                if number:
                    times.setdefault((way, who), []).append(seconds)
        shutil.rmtree(cache)
        shutil.rmtree(root / "back")
        server.stop()
        shutil.rmtree(server.folder)
        server.start()
    return times


def with_key(server: MinioServer) -> str:
    """How `mc` is told about a server by an environment variable."""
    return f"http://{server.key}:{server.secret}@{server.host}"


def with_mc(environment: dict[str, str], way: str, source: Path, back: Path, bucket: str) -> float:
    """Seconds of one `mc cp`, its start included, which is some 50 ms."""
    there = f"here/{bucket}/mc/"
    places = [f"{source}/", there] if way == "upload" else [there, f"{back}/"]
    begin = time.perf_counter()
    subprocess.run(
        [find_tool("mc"), "cp", "--recursive", "--quiet", *places], env=environment, check=True, capture_output=True
    )
    return time.perf_counter() - begin


def with_store(server: MinioServer, way: str, source: Path, bucket: str, cache: Path) -> float:
    """Seconds of one publication or fetch, without the start of Python."""
    environment = os.environ | server.environment() | {"PYTHONPATH": str(CHECKOUT), "ROBOIMI_CACHE": str(cache / way)}
    uri = f"s3://{bucket}/store"
    if way == "upload":
        out = subprocess.run(
            [sys.executable, "-c", PLACE, uri], env=environment, check=True, capture_output=True, text=True
        )
        for path in source.iterdir():
            os.link(path, Path(out.stdout.strip()) / path.name)
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM, way, uri], env=environment, check=True, capture_output=True, text=True
    )
    return float(out.stdout)


def report(times: dict[tuple[str, str], list[float]]) -> None:
    """Print medians, spreads and the ratio of speeds."""
    total = sum(FILES.values()) / 1e6
    print(f"{total:.0f} MB in {len(FILES)} files; median (least to most) of {len(times['upload', 'store'])} rounds")
    print("| | `mc cp`, s | store, s | store MB/s | store's speed over mc's |")
    print("|---|---|---|---|---|")
    for way in ("upload", "download"):
        mc, ours = times[way, "mc cp"], times[way, "store"]
        ratios = [theirs / own for theirs, own in zip(mc, ours, strict=True)]
        print(f"| {way} | {spread(mc)} | {spread(ours)} | {total / statistics.median(ours):.0f} | {spread(ratios)} |")
    print(json.dumps({f"{way} {who}": [round(value, 3) for value in values] for (way, who), values in times.items()}))


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
