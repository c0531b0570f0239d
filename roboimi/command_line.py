"""What every command of the project does around its work: one sentence and an exit code where something is wrong."""

import argparse
import logging
import sys
from collections.abc import Sequence

from roboimi.errors import RoboimiError


def run_command(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Parse and run the command that the parser's `command` default names.

    Args:
        parser: of all commands.
        arguments: None: those of the process.

    Returns:
        The exit code: the command's, the error's, or 130 after Ctrl-C.
    """
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return options.command(options)
    except RoboimiError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here.", file=sys.stderr)
        return 130
