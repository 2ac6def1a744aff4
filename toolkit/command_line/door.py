"""What every door shares: the RECIPE [key=value ...] command line, --print-config, exit codes.

Exit codes: 0 done; 2 the input or the command line is wrong (one line says how); 1 a failure while
running.
"""

import argparse
import errno
import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from toolkit.base.console import say_error, say_lines
from toolkit.base.errors import BadInput, RunFailed, did_you_mean, full_disk
from toolkit.base.shown import visible
from toolkit.command_line.completion import answer_shell
from toolkit.settings.catalogue import recipes_text
from toolkit.settings.recipes import load_recipe, to_yaml
from toolkit.settings.schema import Recipe

FAILED = 1
BAD_INPUT = 2
LINGER_S = 10.0  # all ranks of a SLURM step should have started within this time
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG)


class Parser(argparse.ArgumentParser):
    """argparse's parser with safer errors: control characters in an argument are escaped, since a
    shell's glob may have put a strange file name there; and a mistyped option or choice gets a "did
    you mean"."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the command line, and exit with code 2."""
        super().error(visible(f"{message}{self._near(message)}"))

    def _near(self, message: str) -> str:
        """A suggestion for the word that argparse's message complains about; empty if none fits."""
        given, listed, names = message.partition("invalid choice: '")[2].partition(
            "' (choose from "
        )
        if listed:
            return did_you_mean(given, re.findall(r"[\w.-]+", names))
        if unknown := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            options = [name for action in self._actions for name in action.option_strings]
            return did_you_mean(unknown[1], options)
        return ""


def guarded(action: Callable[[], None]) -> int:
    """Run a door's action and return its exit code. An error that a person can fix becomes one line
    on stderr and code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # The encoding of the locale may lack a character that we print.
            stream.reconfigure(errors="backslashreplace")
    try:
        action()
    except (BadInput, RunFailed) as error:
        return end_with(error)
    except BrokenPipeError:  # `... | head` closed our output; nothing is wrong
        sys.stderr.close()
    except Exception as error:
        if line := full_disk(error):
            say_error(line)
            return FAILED
        if not isinstance(error, OSError) or error.errno not in _REFUSED or not error.filename:
            raise
        say_error(f"{error.filename}: {os.strerror(error.errno)}")
        return BAD_INPUT
    return 0


def end_with(error: BadInput | RunFailed) -> int:
    """Print what is wrong, unless another rank prints it; returns the exit code.

    When the first task of a step ends, srun sends TERM to the others and reports the highest exit
    code of all. A rank that TERM ends before it has found the same error would turn code 2 into
    143. So a rank ignores TERM from here on and, if the ranks have not met yet, gives the others
    time to start.
    """
    if not error.quiet:
        say_error(error)
    if os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1" and "SLURM_PROCID" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if isinstance(error, BadInput) and not error.agreed:
            time.sleep(LINGER_S)
    return BAD_INPUT if isinstance(error, BadInput) else FAILED


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add the arguments RECIPE and key=value to the parser of a door."""
    parser.add_argument("recipe", help="a recipe of the project by name, or a YAML file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="as in train.steps=100"
    )


def recipe_door(
    argv: Sequence[str] | None,
    *,
    program: str,
    about: str,
    example: str,
    kinds: Sequence[str],
    run: Callable[[Recipe], None],
) -> int:
    """Parse RECIPE and overrides, refuse a recipe of another kind than `kinds`, call `run`, and
    return the exit code."""
    parser = Parser(
        prog=f"python -m toolkit.{program}",
        description=about,
        epilog=f"example:\n  {example}\n\n{recipes_text(kinds)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_recipe(parser)
    parser.add_argument("--print-config", action="store_true", help="show the resolved recipe")
    answer_shell(parser, kinds=kinds)
    arguments = parser.parse_intermixed_args(argv)  # key=value may come after an option

    def action() -> None:
        recipe = load_recipe(arguments.recipe, overrides=arguments.overrides, kinds=kinds)
        if recipe.kind not in kinds:
            raise BadInput(
                f"recipe {arguments.recipe!r} is of kind {recipe.kind!r}; "
                f"toolkit.{program} takes {', '.join(kinds)}"
            )
        if arguments.print_config:
            say_lines(to_yaml(recipe))
            return
        run(recipe)

    return guarded(action)
