"""What a site wants of every job: sbatch's own options, and a file with a user's defaults for them.

Knows the names and alphabets of sbatch's options. Refuses to know what a partition is called.

    ~/.config/toolkit/site.yaml      partition: gpu
                                     account: team7
                                     time_min: 720
"""

import argparse
import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from toolkit.base.errors import BadInput, did_you_mean

SITE_VARIABLE = "TOOLKIT_SITE"
NAME = "letters, digits and _ . , : = + -"


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of sbatch that is passed on as it is: its help, and what may stand in it.

    A line break would be a second #SBATCH line of somebody's choosing, and sbatch has its own ideas
    of quotes and backslashes: what could be misread is refused.
    """

    about: str
    pattern: str = r"[A-Za-z0-9][A-Za-z0-9_.,:=+-]*"
    allowed: str = f"{NAME} only"


OPTIONS: Mapping[str, Option] = {
    "partition": Option("SLURM partition (default: the cluster's)"),
    "account": Option(
        "SLURM account (default: yours)", r"[A-Za-z0-9][A-Za-z0-9_.,:=+@-]*", f"{NAME} @ only"
    ),
    "qos": Option("quality of service"),
    "reservation": Option("reservation"),
    "constraint": Option(
        "features that nodes must have, as in 'a100&ib'",
        r"[A-Za-z0-9_.,:=+*&|()\[\]-]+",
        f"{NAME} and * & | ( ) [ ] only",
    ),
    "exclude": Option(
        "nodes to leave out, as in n[1-3,7]",
        r"[A-Za-z0-9_.,\[\]-]+",
        "a list of nodes, such as n[1-3,7],gpu-a1",
    ),
    "mail_user": Option(
        "whom to write", r"[A-Za-z0-9_.%+@,-]+", "addresses, with commas between them"
    ),
    "mail_type": Option(
        "when to write, as in END,FAIL", r"[A-Z0-9_]+(,[A-Z0-9_]+)*", "names such as END,FAIL"
    ),
    "wckey": Option("workload characterization key, where the site wants one"),
    "comment": Option(
        "what accounting shows beside the job",
        r"[^'\"\\\x00-\x1f\x7f]{1,1000}",
        "up to 1,000 characters in one line, without quotes and backslashes",
    ),
}
DEPENDENCY = Option(
    "what the first job waits for, as in afterok:4711",
    r"[a-z]+(:[A-Za-z0-9_+:]+)?([,?][a-z]+(:[A-Za-z0-9_+:]+)?)*",
    "as sbatch has it, such as afterok:4711",
)


def check_option(name: str, value: str, *, option: Option) -> None:
    """Raise `BadInput` for what sbatch could misread."""
    if not re.fullmatch(option.pattern, value) or not value.isprintable():
        shown = repr(value) if len(value) <= 200 else f"{value[:200]!r}... ({len(value)} long)"
        raise BadInput(f"{name} {shown}: use {option.allowed}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give a command line the options of sbatch."""
    for name, option in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", help=option.about)


def site_file(named: str | None, *, environ: Mapping[str, str]) -> Path | None:
    """The file with the site's defaults: what is named here, or by TOOLKIT_SITE, or the one in the
    user's configuration if it is there. Raises `BadInput` when a named one is not."""
    given = named or environ.get(SITE_VARIABLE)
    if given:
        if not Path(given).is_file():
            raise BadInput(f"site file {given}: no such file")
        return Path(given)
    home = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    path = Path(home) / "toolkit" / "site.yaml"
    return path if path.is_file() else None


def read_site(path: Path, *, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Defaults for the options of `parser`, by the names of their values.

    Raises `BadInput` with the key that is unknown or of another type.
    """
    try:
        # It makes texts only, as they are written: YAML 1.1 has 12:00:00 be a number.
        text = path.read_text(encoding="utf-8")
        found = yaml.load(text, Loader=yaml.BaseLoader) or {}  # noqa: S506
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(
            f"site file {path}: cannot be read ({' '.join(str(error).split())})"
        ) from error
    if not isinstance(found, dict):
        raise BadInput(f"site file {path}: must hold lines such as 'partition: gpu'")
    known = {
        action.dest: action
        for action in parser._actions
        if action.option_strings and action.nargs is None and action.dest != "site"
    }
    for key, value in found.items():
        if key not in known:
            told = f"unknown key {key!r}; valid: {', '.join(known)}{did_you_mean(key, known)}"
            raise BadInput(f"site file {path}: {told}")
        is_number = known[key].type is int
        if not isinstance(value, str) or not re.fullmatch(r"\d+" if is_number else ".+", value):
            what = "a whole number" if is_number else "text in one line"
            raise BadInput(f"site file {path}: {key}: must be {what}, not {value!r}")
        if (choices := known[key].choices) and value not in choices:
            raise BadInput(f"site file {path}: {key}: {value!r} is none of {', '.join(choices)}")
    return {key: int(text) if known[key].type is int else text for key, text in found.items()}
