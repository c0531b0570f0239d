"""`roboimi compare RUN [RUN ...]`: the comparison of one campaign, or across several."""

import argparse
import json
from pathlib import Path

EPILOG = """\
examples:
  roboimi compare outputs/store/campaigns/20261121-143000-ab12
  roboimi compare outputs/store/campaigns/RUN_A s3://lab/store/campaigns/RUN_B --html both.html

All arms are compared on the rollout seeds that they share. Arms of one name and one set of overrides that differ in the
seed of their training alone are one setting, and settings are compared by their trainings.
"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to those of `roboimi`."""
    parser = commands.add_parser(
        "compare",
        help="compare the arms of one or several campaigns",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="STORE/campaigns/RUN_ID, a path or an s3:// URI")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the report as one HTML page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write its figures as JSON")
    parser.set_defaults(command=_compare)


def _compare(options: argparse.Namespace) -> int:
    from rich.console import Console

    from roboimi.reports.campaigns import RunReference, compare_campaigns
    from roboimi.reports.findings import verdict
    from roboimi.reports.report import render_html
    from roboimi.reports.summary import summary_document
    from roboimi.reports.terminal import render_table
    from roboimi.storage.atomic import atomic_path

    report = compare_campaigns([RunReference.parse(run) for run in options.runs])
    for target, text in (
        (options.html, lambda: render_html(report)),
        (options.json, lambda: json.dumps(summary_document(report), indent=1, sort_keys=True) + "\n"),
    ):
        if target is not None:
            with atomic_path(target) as temporary:
                temporary.write_text(text())
    console = Console()
    console.print(render_table(report), highlight=False)
    for sentence in verdict(report).sentences[1:]:
        console.print(f"  {sentence}", highlight=False)
    return 0
