"""`roboimi validate`: what a person sees of a validation."""

import argparse

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from roboimi.errors import ConfigError, DataError
from roboimi.vla.data.manifest import MANIFEST_NAME, DatasetRef, resolve_dataset
from roboimi.vla.data.validate.contract_file import read_contract_file
from roboimi.vla.data.validate.dataset_checks import FINDINGS_NAME, PAGE_NAME
from roboimi.vla.data.validate.page import contract_text
from roboimi.vla.data.validate.repack import repack
from roboimi.vla.data.validate.validate import ValidationReport, validate_dataset

MOST_ROWS = 100


def validate_command(options: argparse.Namespace) -> int:
    """Validate, show, and repack where asked for.

    Args:
        options: `dataset`, `again`, `contract`, `workers`, `repack` and `fix`.

    Returns:
        0 where the dataset passed, 1 where an error was found.

    Raises:
        RoboimiError: the dataset or the contract file cannot be used.
    """
    if options.fix:
        raise ConfigError(
            "There is no --fix, because data is never edited silently: record or import the episode again, or write a "
            "clean copy with --repack OUT."
        )
    if options.workers is not None and options.workers < 1:
        raise ConfigError(f"{options.workers} workers cannot validate: ask for at least one.")
    ref = _resolve(options.dataset)
    limits = None if options.contract is None else read_contract_file(options.contract, ref)
    report = validate_dataset(ref.bring(), limits, again=options.again, workers=options.workers)
    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    if report.findings:
        console.print(_table(report))
        if len(report.findings) > MOST_ROWS:
            say(f"{len(report.findings) - MOST_ROWS} more are in {ref.root / FINDINGS_NAME}")
    counts = f"{len(report.errors)} errors, {len(report.warnings)} warnings"
    verdict = "passed" if report.passed else "FAILED"
    say(f"{verdict}: {report.episodes} episodes, {report.frames} frames, {counts}")
    say(f"contract: {contract_text(ref.contract)} (from {_origin(ref.manifest.source)})")
    nowhere = [code for code, skipped in report.not_applicable.items() if skipped["episodes"] in (0, report.episodes)]
    if nowhere:
        say(f"not applicable (the page says why): {', '.join(sorted(nowhere))}")
    if (ref.root / PAGE_NAME).is_file():
        say(f"page: {ref.root / PAGE_NAME}")
    say(report.dataset)
    if options.repack is not None:
        if not report.passed:
            raise DataError(f"Dataset {ref.root} has errors, and a copy would have them too: nothing was repacked.")
        say(f"repacked: {repack(ref, options.repack).text}")
    return 0 if report.passed else 1


def _resolve(text: str) -> DatasetRef:
    try:
        return resolve_dataset(text)
    except DataError as error:
        if MANIFEST_NAME in str(error) and f"has no {MANIFEST_NAME}" in str(error):
            raise DataError(
                f"The episodes at {text} are unverifiable, because no {MANIFEST_NAME} says what they should be: import "
                f"them with `roboimi dataset import {text}`."
            ) from error
        raise


def _table(report: ValidationReport) -> Table:
    table = Table("code", "severity", "episode", "frames", "dimension", "what is wrong", "what to do", show_lines=True)
    for finding in report.findings[:MOST_ROWS]:
        first_last = "" if finding.frames is None else f"{finding.frames[0]}-{finding.frames[1]}"
        cells = (finding.episode or "", first_last, finding.dimension or "", finding.what, finding.what_to_do)
        colour = "red" if finding.severity == "ERR" else "yellow"
        table.add_row(finding.code, f"[{colour}]{finding.severity}[/]", *(escape(cell) for cell in cells))
    return table


def _origin(source: dict) -> str:
    """Where the contract came from, for people."""
    kind = source.get("kind")
    return "the first episode, when it was imported" if kind == "import" else "the manifest"
