"""Validation of a dataset: every check on every episode, one report.

Episodes are parsed by processes of their own (`pool.py`, `worker.py`); this one reads the manifest and compares
summaries. Writes beside the manifest, where the folder can be written:

    findings.jsonl     one finding a line, see `Finding`
    validation.html    the same for people, with histograms and pictures
    VALIDATION.json    the verdict, the counts and the statistics of the train split; written last
"""

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from roboimi.cores import usable_cores
from roboimi.errors import DataError
from roboimi.progress import Progress
from roboimi.storage.atomic import atomic_path, write_json_atomically
from roboimi.storage.keys import sha256_json
from roboimi.vla.data.manifest import DatasetRef
from roboimi.vla.data.statistics import Statistics
from roboimi.vla.data.validate.across_checks import Summaries
from roboimi.vla.data.validate.check import Stage
from roboimi.vla.data.validate.dataset_checks import FINDINGS_NAME, OWN_FILES, PAGE_NAME, VALIDATION_NAME
from roboimi.vla.data.validate.finding import Finding
from roboimi.vla.data.validate.limits import Limits
from roboimi.vla.data.validate.page import write_page
from roboimi.vla.data.validate.pool import Death, Pool
from roboimi.vla.data.validate.registry import all_checks, checks_of
from roboimi.vla.data.validate.robot import known_limits
from roboimi.vla.data.validate.run_episode import EpisodeResult
from roboimi.vla.data.validate.summary import EpisodeSummary

SCHEMA = "roboimi.validation/1"
CHECKS_VERSION = 2
"""Raised by one when a check is added or finds other things, so that datasets are validated anew."""

_BYTES_WORTH_A_PROCESS = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class ValidationReport:
    """What a validation found.

    Attributes:
        dataset: reference of the dataset, with its digest.
        digest: of the dataset.
        episodes: how many were checked.
        frames: rows of all episodes, as the manifest says.
        findings: everything that was found, errors and warnings.
        unfinished: episodes whose structure is so wrong that their values were not looked at.
        not_applicable: by code of a check that could not look everywhere, in how many episodes (0: the dataset as a
            whole) and why.
        statistics: of the train split; None where there are errors.
        recognised: whether this is the result of an earlier validation of the same files.
    """

    dataset: str
    digest: str
    episodes: int
    frames: int
    findings: tuple[Finding, ...]
    unfinished: tuple[str, ...]
    not_applicable: dict[str, dict[str, Any]]
    statistics: Statistics | None
    recognised: bool = False

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop a campaign."""
        return tuple(finding for finding in self.findings if finding.severity == "ERR")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that do not."""
        return tuple(finding for finding in self.findings if finding.severity == "WARN")

    @property
    def passed(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    def raise_if_failed(self) -> None:
        """Do nothing where the dataset passed.

        Raises:
            DataError: one sentence with the number of errors and the first of them.
        """
        if self.errors:
            first = self.errors[0].sentence
            raise DataError(f"Dataset {self.dataset} has {len(self.errors)} errors; the first: {first}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the findings themselves."""
        return {
            "schema": SCHEMA,
            "checks_version": CHECKS_VERSION,
            "dataset_digest": self.digest,
            "passed": self.passed,
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "episodes": self.episodes,
            "frames": self.frames,
            "unfinished": list(self.unfinished),
            "not_applicable": self.not_applicable,
            "statistics": self.statistics,
            "statistics_sha256": sha256_json(self.statistics),
        }


def validate_dataset(
    ref: DatasetRef, limits: Limits | None = None, *, again: bool = False, workers: int | None = None
) -> ValidationReport:
    """Run every check; a dataset that passed before and has not been touched since is recognised.

    Args:
        ref: the dataset.
        limits: what the checks measure against; None: those of the robot that recorded it, where it is known.
        again: look at every byte even where an earlier validation could be taken.
        workers: processes that parse episodes; None: one a core.

    Returns:
        The report; `raise_if_failed` turns errors into an exception.
    """
    limits = known_limits(ref) if limits is None else limits
    if not again and (earlier := _earlier(ref, limits)) is not None:
        return earlier
    touched = _touched(ref.root)
    setup = {
        "root": str(ref.root),
        "manifest": ref.manifest.to_dict(),
        "digest": ref.digest,
        "limits": dataclasses.asdict(limits),
    }
    with Pool(setup, workers or _workers(ref)) as pool:
        report, summaries = _run(ref, limits, pool)
        if os.access(ref.root, os.W_OK):
            write_findings(ref.root / FINDINGS_NAME, report.findings)
            write_page(ref.root / PAGE_NAME, report, ref, summaries, limits, pool)
            document = {**report.to_dict(), "limits": dataclasses.asdict(limits), "files": touched}
            write_json_atomically(ref.root / VALIDATION_NAME, document)
    return report


def write_findings(path: Path, findings: Iterable[Finding]) -> None:
    """Write findings as JSON lines, atomically; see `atomic_path` for the errors."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(finding.to_dict(), sort_keys=True) + "\n" for finding in findings))


def _run(ref: DatasetRef, limits: Limits, pool: Pool) -> tuple[ValidationReport, list[EpisodeSummary]]:
    """The report, and the summaries of the episodes that were looked at to the end."""
    not_applicable: dict[str, dict[str, Any]] = {}
    findings = []
    for check in checks_of(Stage.DATASET):
        outcome = check.run(ref, limits)
        findings += outcome.findings
        if outcome.not_applicable is not None:
            not_applicable[check.code] = {"episodes": 0, "reason": outcome.not_applicable}
    results = _episode_results(ref, pool)
    findings += [finding for result in results for finding in result.findings]
    unfinished = [
        entry.file for entry, result in zip(ref.manifest.episodes, results, strict=True) if not result.finished
    ]
    for result in results:
        for code, reason in result.not_applicable.items():
            not_applicable.setdefault(code, {"episodes": 0, "reason": reason})["episodes"] += 1
    statistics = None if _failed(findings) else _statistics(pool)
    kept = [result.summary for result in results if result.summary is not None]
    summaries = Summaries(ref, kept, limits, statistics, _earlier_statistics(ref))
    for check in checks_of(Stage.ACROSS):
        outcome = check.run(summaries, limits)
        findings += outcome.findings
        if outcome.not_applicable is not None:
            not_applicable[check.code] = {"episodes": 0, "reason": outcome.not_applicable}
    report = ValidationReport(
        dataset=ref.text,
        digest=ref.digest,
        episodes=len(ref.manifest.episodes),
        frames=sum(entry.frames for entry in ref.manifest.episodes),
        findings=tuple(findings),
        unfinished=tuple(unfinished),
        not_applicable=not_applicable,
        statistics=None if _failed(findings) else statistics,
    )
    return report, kept


def _episode_results(ref: DatasetRef, pool: Pool) -> list[EpisodeResult]:
    """What the checks of each episode gave, in the manifest's order."""
    entries = ref.manifest.episodes
    results: dict[int, EpisodeResult] = {}
    jobs = [(index, {"episode": entry.file}) for index, entry in enumerate(entries)]
    with Progress.start("validate", total=len(entries)) as progress:
        for index, outcome in pool.run(jobs):
            results[index] = _result(entries[index].file, outcome)
            progress.update(len(results), note=entries[index].file)
    return [results[index] for index in range(len(entries))]


def _result(file: str, outcome: Any) -> EpisodeResult:
    """What came back for an episode; whatever is no result is a finding about it."""
    if not isinstance(outcome, Death):
        try:
            return EpisodeResult.from_dict(outcome)
        except (ValueError, TypeError, KeyError):
            outcome = Death("the process that read it answered nonsense")
    finding = Finding(
        code="E01-unopenable",
        severity="ERR",
        what=str(outcome),
        what_to_do="restore the file from where it came, or drop it",
        episode=file,
    )
    return EpisodeResult((finding,), finished=False)


def _statistics(pool: Pool) -> Statistics:
    try:
        return pool.ask({"statistics": True})
    except Death as death:
        raise DataError(f"Statistics cannot be computed ({death}): validate again.") from death


def _workers(ref: DatasetRef) -> int:
    """One process a core, but none for work that takes less time than starting it."""
    work = sum(entry.bytes for entry in ref.manifest.episodes)
    return min(usable_cores(), 1 + work // _BYTES_WORTH_A_PROCESS)


def _failed(findings: Iterable[Finding]) -> bool:
    return any(finding.severity == "ERR" for finding in findings)


def _touched(root: Path) -> dict[str, list[int]]:
    """Size and time of change of everything in the folder but what validation itself writes."""
    seen = {}
    for path in sorted(root.iterdir()):
        if path.name not in OWN_FILES:
            status = path.lstat()
            seen[path.name] = [status.st_size, status.st_mtime_ns]
    return seen


def _earlier_document(ref: DatasetRef) -> dict[str, Any]:
    """`VALIDATION.json` of this dataset; empty where there is none that can be read."""
    try:
        document = json.loads((ref.root / VALIDATION_NAME).read_text())
    except (OSError, ValueError):
        return {}
    fine = isinstance(document, dict) and document.get("dataset_digest") == ref.digest
    return document if fine else {}


def _earlier_statistics(ref: DatasetRef) -> Statistics | None:
    statistics = _earlier_document(ref).get("statistics")
    return statistics if isinstance(statistics, dict) else None


def _earlier(ref: DatasetRef, limits: Limits) -> ValidationReport | None:
    """The report of an earlier validation that passed, if the same checks ran on the same untouched files."""
    document = _earlier_document(ref)
    try:
        lines = (ref.root / FINDINGS_NAME).read_text().splitlines()
        findings = tuple(Finding.from_dict(json.loads(line)) for line in lines)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    wanted = {
        "schema": SCHEMA,
        "checks_version": CHECKS_VERSION,
        "passed": True,
        "limits": json.loads(json.dumps(dataclasses.asdict(limits))),
        "files": _touched(ref.root),
        "statistics_sha256": sha256_json(document.get("statistics")),
        "errors": 0,
        "warnings": len(findings),
    }
    if not (ref.root / PAGE_NAME).is_file() or any(document.get(name) != value for name, value in wanted.items()):
        return None
    return ValidationReport(
        dataset=ref.text,
        digest=ref.digest,
        episodes=document["episodes"],
        frames=document["frames"],
        findings=findings,
        unfinished=(),
        not_applicable=document["not_applicable"],
        statistics=document["statistics"],
        recognised=True,
    )


__all__ = ["CHECKS_VERSION", "SCHEMA", "ValidationReport", "all_checks", "validate_dataset", "write_findings"]
