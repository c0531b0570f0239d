"""How much the validation finds: `python benchmarks/validation_detection.py DATASET --instances 200`.

Plants every class of faults into episodes of a sound recorded dataset, many times and at several severities, and counts
what is found (recall), under the right episode and frames (place), with Wilson 95 % intervals. `--clean DATASET` counts
false alarms on further sound episodes.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.stats import binomtest

from benchmarks import hostile_files
from benchmarks.validation_faults import EPISODE_FAULTS, LIMITS, Fault, Frames, MemoryView, Sample, read_sample
from roboimi.vla.data.episode import image_name, write_episode
from roboimi.vla.data.manifest import DatasetRef, describe_episode, resolve_dataset
from roboimi.vla.data.statistics import compute_statistics
from roboimi.vla.data.validate.across_checks import Summaries
from roboimi.vla.data.validate.check import GATES, Stage
from roboimi.vla.data.validate.finding import Finding
from roboimi.vla.data.validate.limits import Limits
from roboimi.vla.data.validate.pictures import watch
from roboimi.vla.data.validate.registry import all_checks, checks_of
from roboimi.vla.data.validate.robot import known_limits
from roboimi.vla.data.validate.run_episode import check_episode
from roboimi.vla.data.validate.summary import EpisodeSummary, summarise
from roboimi.vla.data.validate.validate import validate_dataset

SAME_PLACE = 0.5
"""Share of the frames that a finding and the fault must have in common (intersection over union)."""


@dataclasses.dataclass
class Score:
    """Counts for one class at one severity."""

    number: int
    name: str
    severity: str
    stated: bool
    planted: int = 0
    found: int = 0
    placed: int = 0

    def count(self, findings: list[Finding], codes: frozenset[str], episode: str | None, frames: Frames) -> None:
        """Take in one instance."""
        self.planted += 1
        right = [finding for finding in findings if finding.code in codes and finding.episode == episode]
        self.found += bool(right)
        self.placed += any(same_place(finding.frames, frames) for finding in right)


def same_place(found: Frames, planted: Frames) -> bool:
    """Whether two spans of frames are about the same; None is the whole episode."""
    if found is None or planted is None:
        return planted is None
    shared = min(found[1], planted[1]) - max(found[0], planted[0]) + 1
    return shared / (max(found[1], planted[1]) - min(found[0], planted[0]) + 1) >= SAME_PLACE


class Bench:
    """A sound dataset in memory, and what is known of it."""

    def __init__(self, ref: DatasetRef, limits: Limits | None = None):
        self.ref = ref
        self.limits = known_limits(ref) if limits is None else limits
        if self.limits.state_low is not None:
            LIMITS.update(low=self.limits.state_low, high=self.limits.state_high)
        self.samples = [read_sample(ref.path(entry)) for entry in ref.manifest.episodes]
        self.facts, self.summaries = [], []
        for entry in ref.manifest.episodes:
            with h5py.File(ref.path(entry)) as file:
                cameras = {name: watch(file[image_name(name)]) for name in ref.contract.cameras}
            self.facts.append(cameras)
        for sample, facts in zip(self.samples, self.facts, strict=True):
            view = MemoryView(ref, sample, facts)
            self.summaries.append(summarise(view, self.limits))
            view.close()
        self.statistics = compute_statistics(ref)

    def episode(self, index: int, sample: Sample, codes: frozenset[str]) -> list[Finding]:
        """Findings of an episode that takes the place of a sound one; of checks of values only `codes`."""
        frames = sample.frames if "action" in sample.arrays else self.samples[index].frames
        view = MemoryView(self.ref, sample, self.facts[index], frames)
        try:
            findings: list[Finding] = []
            for stage in (Stage.OPEN, Stage.STRUCTURE, Stage.VALUES):
                checks = [check for check in checks_of(stage) if stage in GATES or check.code in codes]
                found = [item for check in checks for item in check.run(view, self.limits).findings]
                findings += found
                if stage in GATES and any(finding.severity == "ERR" for finding in found):
                    return findings
            across = any(check.code in codes for check in checks_of(Stage.ACROSS))
            summary = summarise(view, self.limits) if across else None
        finally:
            view.close()
        if summary is not None:
            findings += self.across([*self.summaries[:index], summary, *self.summaries[index + 1 :]], codes)
        return findings

    def across(self, summaries: list[EpisodeSummary], codes: frozenset[str], **options: Any) -> list[Finding]:
        """Findings of the comparison of episodes, of the checks `codes`."""
        subject = Summaries(self.ref, summaries, self.limits, **options)
        checks = [check for check in checks_of(Stage.ACROSS) if check.code in codes]
        return [item for check in checks for item in check.run(subject, self.limits).findings]


def plant_in_episodes(bench: Bench, fault: Fault, instances: int, seed: int) -> list[Score]:
    """One class of faults of single episodes, at every step of its ladder."""
    scores = []
    for step in fault.ladder:
        stated = (step >= fault.stated) if fault.ladder[0] <= fault.ladder[-1] else (step <= fault.stated)
        score = Score(fault.number, fault.name, f"{step:g} {fault.unit}".strip(), stated)
        rng = np.random.default_rng((seed, fault.number, round(1000 * step)))
        for _ in range(instances):
            index = int(rng.integers(len(bench.samples)))
            sample = bench.samples[index].copy()
            frames = fault.plant(sample, rng, step)
            score.count(bench.episode(index, sample, fault.codes), fault.codes, sample.file, frames)
        scores.append(score)
    return scores


def plant_in_files(bench: Bench, instances: int, seed: int) -> Iterator[Score]:
    """Numbers 1 to 5: the bytes and the structure of files, of small images so that many can be written."""
    rng = np.random.default_rng((seed, 1))
    contract = dataclasses.replace(bench.ref.contract, image_height=8, image_width=8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episode_000000.hdf5"
        sample = bench.samples[0]
        arrays = {
            name: values[:, :8, :8] if name.startswith("observations/images") else values
            for name, values in sample.arrays.items()
        }
        write_episode(path, arrays, contract, {"success": True})
        sound, entry = path.read_bytes(), describe_episode(path)
        manifest = dataclasses.replace(bench.ref.manifest, contract=contract)
        ref = DatasetRef(Path(folder), manifest, "0" * 64)

        def findings(described: bool) -> list[Finding]:
            now = hostile_files.describe(path, entry) if described else entry
            return list(check_episode(ref, now, bench.limits).findings)

        cut, flip = Score(1, "cut off", "any length", True), Score(2, "a bit flipped", "1 bit", True)
        damaged = Score(1, "a stored image damaged, then hashed", "1 byte", True)
        for _ in range(instances):
            path.write_bytes(sound[: int(rng.integers(0, len(sound) - 1))])
            cut.count(findings(False), frozenset({"E01-unopenable", "E01-damaged-data"}), path.name, None)
            content = bytearray(sound)
            content[int(rng.integers(len(sound)))] ^= 1 << int(rng.integers(8))
            path.write_bytes(content)
            flip.count(findings(False), frozenset({"E02-content-hash"}), path.name, None)
            frame = hostile_files.damage_image(path, sound, rng)
            damaged.count(findings(True), frozenset({"E01-damaged-data"}), path.name, (frame, frame))
        yield from (cut, damaged, flip)
        for number, name in ((4, "links, references and names"), (5, "bombs and filters")):
            score = Score(number, name, "any kind", True)
            kinds = [kind for kind in hostile_files.KINDS if kind.number == number]
            for instance in range(instances):
                path.write_bytes(sound)
                kind = kinds[instance % len(kinds)]
                kind.plant(path, rng)
                codes = frozenset(code for code in all_checks() if code[1:3] == f"{number:02d}")
                score.count(findings(True), codes, path.name, None)
            yield score


def plant_in_datasets(bench: Bench, instances: int, seed: int) -> Iterator[Score]:
    """Numbers 3, 28, 29, 32 and 33: the folder, the split, the statistics and the order of episodes."""
    rng = np.random.default_rng((seed, 2))
    yield _foreign_files(bench, instances, rng)
    held_out = set(bench.ref.manifest.split["validation"])
    for trimmed, stated in ((0, True), (1, True), (10, True), (60, False)):
        duplicate = Score(28, "the same episode twice", f"{trimmed} frames cut off", stated)
        leak = Score(29, "held out and trained on", f"{trimmed} frames cut off", stated)
        for _ in range(instances):
            copy = int(rng.integers(len(bench.samples)))
            if bench.samples[copy].file in held_out:
                others = [i for i, sample in enumerate(bench.samples) if sample.file not in held_out]
            else:
                others = [i for i, sample in enumerate(bench.samples) if sample.file in held_out]
            original = int(rng.choice(others))
            sample = bench.samples[original].copy()
            kept = slice(trimmed // 2, sample.frames - (trimmed - trimmed // 2))
            for name in sample.arrays:
                sample.put(name, sample.arrays[name][kept])
            sample.file = bench.samples[copy].file
            sample.touched.clear()
            view = MemoryView(bench.ref, sample, bench.facts[original])
            summary = summarise(view, bench.limits)
            view.close()
            summaries = [*bench.summaries[:copy], summary, *bench.summaries[copy + 1 :]]
            found = bench.across(summaries, frozenset({"E28-duplicate", "E29-leakage"}))
            later = max(copy, original)
            duplicate.count(found, frozenset({"E28-duplicate"}), bench.samples[later].file, None)
            held = copy if bench.samples[copy].file in held_out else original
            leak.count(found, frozenset({"E29-leakage"}), bench.samples[held].file, None)
        yield duplicate
        yield leak
    for change in (1e-9, 1e-3):
        stale = Score(32, "stale statistics", f"{change:g} relative", True)
        for _ in range(instances):
            earlier = json.loads(json.dumps(bench.statistics))
            part = str(rng.choice(sorted(earlier)))
            values = earlier[part][str(rng.choice(["mean", "std", "max", "min"]))]
            values[int(rng.choice(np.flatnonzero(values)))] *= 1 + change
            codes = frozenset({"E32-stale-statistics"})
            found = bench.across(bench.summaries, codes, statistics=bench.statistics, earlier=earlier)
            stale.count([item for item in found if item.dimension == part], codes, None, None)
        yield stale
    for sigmas in (2.0, 5.0, 8.0):
        yield _drift(bench, instances, rng, sigmas)


def _foreign_files(bench: Bench, instances: int, rng: np.random.Generator) -> Score:
    score = Score(3, "foreign files in the folder", "any name", True)
    names = ["._episode_{}.hdf5", ".episode_{}.hdf5", "episode_{} (1).hdf5", "notes_{}.txt", ".writing-{}", "e{}.h5"]
    with tempfile.TemporaryDirectory() as folder:
        ref = dataclasses.replace(bench.ref, root=Path(folder))
        for instance in range(instances):
            name = names[instance % len(names)].format(int(rng.integers(10**6)))
            (ref.root / name).write_bytes(b"")
            found = [item for check in checks_of(Stage.DATASET) for item in check.run(ref, bench.limits).findings]
            score.count(found, frozenset({"E03-unlisted-episode", "W03-other-file"}), name, None)
            (ref.root / name).unlink()
    return score


def _drift(bench: Bench, instances: int, rng: np.random.Generator, sigmas: float) -> Score:
    score = Score(33, "drift over the session", f"{sigmas:g} times the scatter", sigmas >= 5)
    cameras = list(bench.ref.contract.cameras)
    for _ in range(instances):
        order = rng.permutation(len(bench.summaries))
        shuffled = [bench.summaries[index] for index in order]
        wander = np.linspace(-0.5, 0.5, len(shuffled))
        joint = int(rng.integers(0, 7))
        if joint < 6:
            first = np.array([summary.state[0, joint] for summary in shuffled], dtype=np.float64)
            scatter = max(first.std(), 1e-3 * abs(first.mean()), 1e-6)
            changed = [
                dataclasses.replace(summary, state=_moved(summary.state, joint, sigmas * scatter * step))
                for summary, step in zip(shuffled, wander, strict=True)
            ]
            dimension = f"/observations/qpos [{joint}] {bench.ref.contract.state_names[joint]}"
        else:
            dimension = str(rng.choice(cameras))
            light = np.array([summary.cameras[dimension].brightness for summary in shuffled])
            scatter = max(light.std(), 1e-3 * light.mean())
            changed = [
                _brighter(summary, dimension, sigmas * scatter * step)
                for summary, step in zip(shuffled, wander, strict=True)
            ]
        codes = frozenset({"W33-drift"})
        found = [item for item in bench.across(changed, codes) if item.dimension == dimension]
        score.count(found, codes, None, None)
    return score


def _moved(state: np.ndarray, joint: int, by: float) -> np.ndarray:
    state = state.copy()
    state[:, joint] += by
    return state


def _brighter(summary: EpisodeSummary, camera: str, by: float) -> EpisodeSummary:
    old = summary.cameras[camera]
    cameras = summary.cameras | {camera: dataclasses.replace(old, brightness=old.brightness + by)}
    return dataclasses.replace(summary, cameras=cameras)


def all_scores(bench: Bench, instances: int, seed: int, numbers: list[int] | None = None) -> Iterator[Score]:
    """Every class: those of files, those of datasets, those of episodes; with `numbers` only these."""
    wanted = set(numbers or range(1, 35))
    if wanted & {1, 2, 4, 5}:
        yield from plant_in_files(bench, instances, seed)
    if wanted & {3, 28, 29, 32, 33}:
        yield from plant_in_datasets(bench, instances, seed)
    for fault in EPISODE_FAULTS:
        if fault.number in wanted:
            yield from plant_in_episodes(bench, fault, instances, seed)


def main() -> None:
    """Plant, count and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--instances", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--numbers", type=int, nargs="*", help="of the checks; default: all")
    parser.add_argument("--clean", type=Path, nargs="*", default=[], help="further sound datasets for false alarms")
    options = parser.parse_args()
    started = time.perf_counter()
    for folder in [options.dataset, *options.clean]:
        report = validate_dataset(resolve_dataset(folder), again=True)
        alarmed = {finding.episode for finding in report.findings}
        share = interval(len(alarmed), report.episodes)
        print(f"false alarms on {folder.name}: {len(alarmed)} of {report.episodes} episodes, {share}")
        for finding in report.findings[:20]:
            print(f"  {finding.sentence}")
    bench = Bench(resolve_dataset(options.dataset))
    print(f"\n| check | fault | severity | planted | found | recall (95 %) | right place |\n|{'---|' * 7}")
    for score in all_scores(bench, options.instances, options.seed, options.numbers):
        severity = f"**{score.severity}**" if score.stated else score.severity
        place = f"{100 * score.placed / max(score.found, 1):.1f} %"
        recall = interval(score.found, score.planted)
        counts = f"{score.planted} | {score.found} | {recall} | {place}"
        print(f"| {score.number} | {score.name} | {severity} | {counts} |", flush=True)
    print(f"\n{time.perf_counter() - started:.0f} s")


def interval(count: int, total: int) -> str:
    """Share with its Wilson 95 % interval."""
    ends = binomtest(count, total).proportion_ci(method="wilson")
    return f"{100 * count / total:.1f} % ({100 * ends.low:.1f} to {100 * ends.high:.1f})"


if __name__ == "__main__":
    main()
