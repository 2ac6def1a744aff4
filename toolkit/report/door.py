"""The door `python -m toolkit.report`."""

import argparse
import time
from pathlib import Path

from toolkit.base.layout import REPORT_DIR
from toolkit.command_line.completion import answer_shell
from toolkit.command_line.door import Parser, guarded
from toolkit.report.page import report


def main(argv: list[str] | None = None) -> int:
    """The door `python -m toolkit.report`."""
    parser = Parser(
        prog="python -m toolkit.report",
        description="Draw a run, a pipeline or an encoding as one HTML page.",
        epilog="examples:\n  python -m toolkit.report runs/quickstart",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's directory")
    parser.add_argument("--output", type=Path, help="where to write (default RUN/report)")
    answer_shell(parser)
    arguments = parser.parse_args(argv)
    output = arguments.output or arguments.run / REPORT_DIR
    return guarded(lambda: report(arguments.run, output=output, now=time.time()))
