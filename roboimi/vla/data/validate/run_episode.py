"""All checks of one episode, and the summary of it that checks across episodes look at."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

from roboimi.vla.data.manifest import DatasetRef, EpisodeEntry
from roboimi.vla.data.validate.check import EPISODE_STAGES, GATES, Check, Stage
from roboimi.vla.data.validate.finding import Finding, printable
from roboimi.vla.data.validate.limits import Limits
from roboimi.vla.data.validate.registry import checks_of
from roboimi.vla.data.validate.summary import EpisodeSummary, summarise
from roboimi.vla.data.validate.view import EpisodeView


@dataclasses.dataclass(frozen=True)
class EpisodeResult:
    """What the checks of one episode gave.

    Attributes:
        findings: what is wrong.
        finished: whether every stage was reached.
        not_applicable: why a check could not look, by its code.
        summary: for the checks across episodes; None where the episode was not looked at to the end.
    """

    findings: tuple[Finding, ...]
    finished: bool
    not_applicable: dict[str, str] = dataclasses.field(default_factory=dict)
    summary: EpisodeSummary | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "findings": [finding.to_dict() for finding in self.findings],
            "finished": self.finished,
            "not_applicable": self.not_applicable,
            "summary": self.summary.to_dict() if self.summary else None,
        }

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            ValueError, TypeError, KeyError: the document is something else.
        """
        return cls(
            findings=tuple(Finding.from_dict(item) for item in document["findings"]),
            finished=bool(document["finished"]),
            not_applicable={str(code): printable(str(text)) for code, text in document["not_applicable"].items()},
            summary=EpisodeSummary.from_dict(document["summary"]) if document["summary"] else None,
        )


def check_episode(
    ref: DatasetRef, entry: EpisodeEntry, limits: Limits, beat: Callable[[], None] = lambda: None
) -> EpisodeResult:
    """Run every check of one episode, in this process.

    Args:
        ref: the dataset.
        entry: the episode.
        limits: what the checks measure against.
        beat: called now and then while the work goes on.
    """
    view = EpisodeView(ref, entry, beat)
    try:
        return check_view(view, limits)
    finally:
        view.close()


def check_view(view: EpisodeView, limits: Limits) -> EpisodeResult:
    """Run every check on an open episode; see `check_episode`."""
    findings: list[Finding] = []
    not_applicable: dict[str, str] = {}
    for stage in EPISODE_STAGES:
        stage_findings: list[Finding] = []
        for check in checks_of(stage):
            outcome = _run(check, view, limits, not_applicable)
            stage_findings += outcome
        findings += stage_findings
        if stage is Stage.CONTENT and not view.is_plain_file:
            return EpisodeResult(tuple(findings), finished=False, not_applicable=not_applicable)
        if stage in GATES and any(finding.severity == "ERR" for finding in stage_findings):
            return EpisodeResult(tuple(findings), finished=False, not_applicable=not_applicable)
    return EpisodeResult(tuple(findings), True, not_applicable, summarise(view, limits))


def _run(check: Check, view: EpisodeView, limits: Limits, not_applicable: dict[str, str]) -> tuple[Finding, ...]:
    outcome = check.run(view, limits)
    if outcome.not_applicable is not None:
        not_applicable[check.code] = outcome.not_applicable
    return outcome.findings
