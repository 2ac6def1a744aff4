"""The list of the commands:  python -m toolkit"""

import sys
from collections.abc import Sequence

from toolkit import __doc__ as about
from toolkit.base.console import say
from toolkit.base.errors import BadInput, did_you_mean
from toolkit.command_line.door import guarded

# In the order in which a person needs them.
DOORS = {
    "quickstart": "run the whole pipeline on what the project ships",
    "plan": "estimate the memory, hours and network that a recipe will need",
    "prefetch": "fetch the models of a recipe, for nodes without a network",
    "ready": "check whether a recipe could start, without starting it",
    "launch": "submit a recipe, or every stage of a pipeline, as jobs",
    "status": "show where runs stand",
    "train": "train an encoder, alone or inside an allocation",
    "encode": "embed a corpus, alone or together with other workers",
    "questions": "have a decoder write questions about the documents of a corpus",
    "search": "find the rows of an embedded corpus that are nearest to a query",
    "evaluate": "score encoders side by side",
    "report": "draw a run as one page",
    "merge": "merge encoders of one base into one",
    "export": "write an encoder or vectors for other tools",
    "verify": "check every byte of what the toolkit has written",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the commands, one per line; returns the exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    return guarded(lambda: show(given))


def show(given: Sequence[str]) -> None:
    """Print the commands. Raises `BadInput` where a command was meant to be run."""
    if given and given[0] not in ("-h", "--help"):
        if given[0] in DOORS:
            raise BadInput(f"a command is run as python -m toolkit.{given[0]}")
        near = did_you_mean(given[0], DOORS) or f"; valid: {', '.join(DOORS)}"
        raise BadInput(f"unknown command {given[0]!r}{near}")
    say(about)
    say()
    for name, what in DOORS.items():
        say(f"  python -m toolkit.{name:<12}{what}")
    say()
    say("Each has --help. Scripts that make data are in data_scripts/.")


if __name__ == "__main__":
    sys.exit(main())
