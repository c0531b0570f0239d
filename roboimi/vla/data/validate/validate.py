"""Validation of a dataset: every check on every episode, one report.

Writes beside the manifest, where the folder can be written:

    findings.jsonl     one finding a line, see `Finding`
    VALIDATION.json    the verdict, the counts and the statistics of the train split; written last
"""

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from roboimi.errors import DataError
from roboimi.progress import Progress
from roboimi.storage.atomic import atomic_path, write_json_atomically
from roboimi.vla.data.manifest import DatasetRef
from roboimi.vla.data.statistics import Statistics, compute_statistics
from roboimi.vla.data.validate import dataset_checks, episode_checks
from roboimi.vla.data.validate.check import GATES, Check, EpisodeView, Limits, Stage
from roboimi.vla.data.validate.dataset_checks import FINDINGS_NAME, OWN_FILES, VALIDATION_NAME
from roboimi.vla.data.validate.finding import Finding

SCHEMA = "roboimi.validation/1"
CHECKS_VERSION = 1
"""Raised by one when a check is added or finds other things, so that datasets are validated anew."""


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
        statistics: of the train split; None where there are errors.
        recognised: whether this is the result of an earlier validation of the same files.
    """

    dataset: str
    digest: str
    episodes: int
    frames: int
    findings: tuple[Finding, ...]
    unfinished: tuple[str, ...]
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
            "statistics": self.statistics,
        }


def all_checks() -> dict[str, Check]:
    """Every check by its code, in the order of their stages."""
    found = [item for module in (dataset_checks, episode_checks) for item in vars(module).values()]
    return {item.code: item for item in sorted((c for c in found if isinstance(c, Check)), key=lambda c: c.stage)}


def validate_dataset(ref: DatasetRef, limits: Limits | None = None, *, again: bool = False) -> ValidationReport:
    """Run every check; a dataset that passed before and has not been touched since is recognised.

    Args:
        ref: the dataset.
        limits: what the checks measure against.
        again: look at every byte even where an earlier validation could be taken.

    Returns:
        The report; `raise_if_failed` turns errors into an exception.
    """
    limits = limits or Limits()
    if not again and (earlier := _earlier(ref, limits)) is not None:
        return earlier
    touched = _touched(ref.root)
    findings, unfinished = _run(ref, limits)
    failed = any(finding.severity == "ERR" for finding in findings)
    report = ValidationReport(
        dataset=ref.text,
        digest=ref.digest,
        episodes=len(ref.manifest.episodes),
        frames=sum(entry.frames for entry in ref.manifest.episodes),
        findings=tuple(findings),
        unfinished=tuple(unfinished),
        statistics=None if failed else compute_statistics(ref),
    )
    if os.access(ref.root, os.W_OK):
        write_findings(ref.root / FINDINGS_NAME, report.findings)
        document = {**report.to_dict(), "limits": dataclasses.asdict(limits), "files": touched}
        write_json_atomically(ref.root / VALIDATION_NAME, document)
    return report


def write_findings(path: Path, findings: Iterable[Finding]) -> None:
    """Write findings as JSON lines, atomically; see `atomic_path` for the errors."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(finding.to_dict(), sort_keys=True) + "\n" for finding in findings))


def _run(ref: DatasetRef, limits: Limits) -> tuple[list[Finding], list[str]]:
    """All findings, and the episodes that could not be checked to the end."""
    checks = list(all_checks().values())
    findings = [f for check in checks if check.stage is Stage.DATASET for f in check.findings(ref, limits)]
    unfinished = []
    entries = ref.manifest.episodes
    with Progress.start("validate", total=len(entries)) as progress:
        for done, entry in enumerate(entries):
            progress.update(done, note=entry.file)
            view = EpisodeView(ref, entry)
            try:
                found, finished = _episode_findings(view, checks, limits)
            finally:
                view.close()
            findings += found
            if not finished:
                unfinished.append(entry.file)
        progress.update(len(entries))
    return findings, unfinished


def _episode_findings(view: EpisodeView, checks: list[Check], limits: Limits) -> tuple[list[Finding], bool]:
    """What is wrong with one episode, and whether every stage was reached."""
    findings: list[Finding] = []
    for stage in (stage for stage in Stage if stage is not Stage.DATASET):
        found = [f for check in checks if check.stage is stage for f in check.findings(view, limits)]
        findings += found
        if stage in GATES and any(finding.severity == "ERR" for finding in found):
            return findings, False
    return findings, True


def _touched(root: Path) -> dict[str, list[int]]:
    """Size and time of change of everything in the folder but what validation itself writes."""
    seen = {}
    for path in sorted(root.iterdir()):
        if path.name not in OWN_FILES:
            status = path.lstat()
            seen[path.name] = [status.st_size, status.st_mtime_ns]
    return seen


def _earlier(ref: DatasetRef, limits: Limits) -> ValidationReport | None:
    """The report of an earlier validation that passed, if the same checks ran on the same untouched files."""
    try:
        document = json.loads((ref.root / VALIDATION_NAME).read_text())
        lines = (ref.root / FINDINGS_NAME).read_text().splitlines()
        findings = tuple(Finding.from_dict(json.loads(line)) for line in lines)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    wanted = {
        "schema": SCHEMA,
        "checks_version": CHECKS_VERSION,
        "dataset_digest": ref.digest,
        "passed": True,
        "limits": json.loads(json.dumps(dataclasses.asdict(limits))),
        "files": _touched(ref.root),
    }
    if any(document.get(name) != value for name, value in wanted.items()):
        return None
    if document["errors"] + document["warnings"] != len(findings):
        return None
    return ValidationReport(
        dataset=ref.text,
        digest=ref.digest,
        episodes=document["episodes"],
        frames=document["frames"],
        findings=findings,
        unfinished=(),
        statistics=document["statistics"],
        recognised=True,
    )
