"""`validation.html`: what a validation found, for people; one file that needs no script and no network.

Everything that comes out of a dataset is escaped by the template, pictures included: they are made anew, as WebP, by
the process that parses episodes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from roboimi import __version__
from roboimi.storage.atomic import atomic_path
from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.manifest import DatasetRef
from roboimi.vla.data.validate.drawings import histogram, ranges
from roboimi.vla.data.validate.finding import Finding
from roboimi.vla.data.validate.limits import Limits
from roboimi.vla.data.validate.pool import Death, Pool
from roboimi.vla.data.validate.registry import all_checks
from roboimi.vla.data.validate.robot import FREE
from roboimi.vla.data.validate.summary import EpisodeSummary
from roboimi.vla.data.validate.unit_checks import GRIPPER_MARGIN

if TYPE_CHECKING:
    from roboimi.vla.data.validate.validate import ValidationReport

STRIP_FRAMES = 8
PICTURE_HEIGHT = 88
MOST_FINDINGS = 500
MOST_WITH_PICTURES = 40
MOST_PICTURE_BYTES = 3_500_000
"""Of all pictures in base64 together, so that the page stays below 5 MB."""


def write_page(
    path: Path,
    report: ValidationReport,
    ref: DatasetRef,
    summaries: Sequence[EpisodeSummary],
    limits: Limits,
    pool: Pool,
) -> None:
    """Write the page atomically; see `atomic_path` for the errors.

    Args:
        path: where.
        report: what was found.
        ref: the dataset.
        summaries: of the episodes that were looked at to the end.
        limits: what was measured against.
        pool: reads the pictures.
    """
    html = render(report, ref, summaries, limits, _Pictures(pool))
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def render(
    report: ValidationReport,
    ref: DatasetRef,
    summaries: Sequence[EpisodeSummary],
    limits: Limits,
    pictures: _Pictures,
) -> str:
    """The page as one string, below 5 MB."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("roboimi.vla.data.validate"), PackageLoader("roboimi.reports")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = "\n".join(environment.loader.get_source(environment, name)[0] for name in ("report.css", "validation.css"))
    readable = {entry.file for entry in ref.manifest.episodes} - set(report.unfinished)
    shown = sorted(report.findings, key=lambda finding: finding.severity)[:MOST_FINDINGS]
    return environment.get_template("validation.html.j2").render(
        style=Markup(style),
        version=__version__,
        report=report,
        name=ref.root.name,
        contract=contract_text(ref.contract),
        findings=_findings(shown, ref, readable, pictures),
        left_out=len(report.findings) - len(shown),
        lengths=histogram(np.array([entry.frames for entry in ref.manifest.episodes]), label="Episode lengths"),
        actions=_actions(ref.contract, summaries),
        joints=_joints(ref.contract, summaries, limits),
        strips=_strips(ref, summaries, pictures),
        checks=_checks(report),
    )


def contract_text(contract: DatasetContract) -> str:
    """The contract in one line."""
    cameras = ", ".join(contract.cameras)
    return (
        f"S={contract.state_dim} A={contract.action_dim} V={contract.num_views} ({cameras}), "
        f"{contract.image_height}x{contract.image_width} at {contract.fps} Hz"
    )


class _Pictures:
    """Small pictures of episodes, as long as there is room for them."""

    def __init__(self, pool: Pool):
        self._pool = pool
        self._room = MOST_PICTURE_BYTES

    def of(self, file: str, wanted: Sequence[tuple[str, int]]) -> list[str]:
        """Data URIs of camera and frame each; empty where there is no picture."""
        job = {"pictures": file, "wanted": [list(item) for item in wanted], "height": PICTURE_HEIGHT}
        try:
            answer = self._pool.ask(job)
        except Death:
            return [""] * len(wanted)
        encoded = [self._checked(item) for item in answer] if isinstance(answer, list) else []
        return encoded if len(encoded) == len(wanted) else [""] * len(wanted)

    def _checked(self, item: Any) -> str:
        try:
            base64.b64decode(item, validate=True)
        except (binascii.Error, TypeError, ValueError):
            return ""
        if not item or len(item) > self._room:
            return ""
        self._room -= len(item)
        return f"data:image/webp;base64,{item}"


def _findings(
    findings: Sequence[Finding], ref: DatasetRef, readable: set[str], pictures: _Pictures
) -> list[dict[str, Any]]:
    rows, left = [], MOST_WITH_PICTURES
    for finding in findings:
        row: dict[str, Any] = {"finding": finding, "pictures": []}
        if left and finding.frames is not None and finding.episode in readable:
            left -= 1
            camera = finding.dimension if finding.dimension in ref.contract.cameras else ref.contract.cameras[0]
            first, last = finding.frames
            frames = sorted({first, (first + last) // 2, last})
            found = pictures.of(finding.episode, [(camera, frame) for frame in frames])
            row["pictures"] = [
                (source, f"{camera}, frame {frame}") for source, frame in zip(found, frames, strict=True) if source
            ]
        rows.append(row)
    return rows


def _actions(contract: DatasetContract, summaries: Sequence[EpisodeSummary]) -> list[tuple[str, Markup]]:
    if not summaries:
        return []
    values = np.concatenate([summary.action for summary in summaries])
    return [
        (name, histogram(values[:, index], label=f"Action {name}")) for index, name in enumerate(contract.action_names)
    ]


def _joints(contract: DatasetContract, summaries: Sequence[EpisodeSummary], limits: Limits) -> list[dict[str, Any]]:
    if not summaries:
        return []
    low = np.min([summary.state_range[0] for summary in summaries], axis=0)
    high = np.max([summary.state_range[1] for summary in summaries], axis=0)
    known: list[tuple[float, float] | None] = [None] * contract.state_dim
    if limits.state_low is not None and limits.state_high is not None:
        pairs = zip(limits.state_low, limits.state_high, strict=True)
        known = [(first, last) if abs(first) < FREE and abs(last) < FREE else None for first, last in pairs]
    grippers = limits.gripper_dims(contract.state_names)
    margins = [GRIPPER_MARGIN if index in grippers else limits.limit_margin for index in range(contract.state_dim)]
    drawings = ranges(list(zip(low.tolist(), high.tolist(), strict=True)), known, margins, label="Range of the joint")
    return [
        {"name": name, "low": float(low[index]), "high": float(high[index]), "limit": known[index], "bar": bar}
        for index, (name, bar) in enumerate(zip(contract.state_names, drawings, strict=True))
    ]


def _strips(ref: DatasetRef, summaries: Sequence[EpisodeSummary], pictures: _Pictures) -> list[dict[str, Any]]:
    if not summaries:
        return []
    first = summaries[0]
    frames = np.linspace(0, first.frames - 1, min(STRIP_FRAMES, first.frames)).round().astype(int).tolist()
    strips = []
    for camera in ref.contract.cameras:
        sources = pictures.of(first.file, [(camera, frame) for frame in frames])
        shown = [(source, frame) for source, frame in zip(sources, frames, strict=True) if source]
        strips.append({"camera": camera, "episode": first.file, "pictures": shown})
    return strips


def _checks(report: ValidationReport) -> list[dict[str, Any]]:
    rows = []
    for code, check in all_checks().items():
        found = sum(finding.code == code for finding in report.findings)
        skipped = report.not_applicable.get(code)
        everywhere = skipped is not None and skipped["episodes"] in (0, report.episodes)
        state = f"{found} found" if found else "not applicable" if everywhere else "passed"
        note = ""
        if skipped is not None:
            where = f" in {skipped['episodes']} of {report.episodes} episodes" if skipped["episodes"] else ""
            note = f"{skipped['reason']}{where}"
        rows.append({"code": code, "title": check.title, "state": state, "note": note, "severity": check.severity})
    return sorted(rows, key=lambda row: (row["code"][1:3], row["code"]))
