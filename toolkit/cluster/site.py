"""The options of sbatch that a site requires of every job, and a user's file of defaults for them.

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
    """An option of sbatch whose value is passed on unchanged: its help text, the pattern of valid
    values, and that pattern in words.

    A line break in a value would add an #SBATCH line of its own, and sbatch interprets quotes and
    backslashes in its own way. So a value that sbatch could misread is refused.
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
    """Raise `BadInput` for a value that sbatch could misread."""
    if not re.fullmatch(option.pattern, value) or not value.isprintable():
        shown = repr(value) if len(value) <= 200 else f"{value[:200]!r}... ({len(value)} long)"
        raise BadInput(f"{name} {shown}: use {option.allowed}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of sbatch to a command line."""
    for name, option in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", help=option.about)


def site_file(named: str | None, *, environ: Mapping[str, str]) -> Path | None:
    """The file with the site's defaults: the one given here, or by TOOLKIT_SITE, or the one in the
    user's configuration folder; None if there is none. Raises `BadInput` when a file that was named
    does not exist."""
    given = named or environ.get(SITE_VARIABLE)
    if given:
        if not Path(given).is_file():
            raise BadInput(f"site file {given}: no such file")
        return Path(given)
    home = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    path = Path(home) / "toolkit" / "site.yaml"
    return path if path.is_file() else None


def read_site(path: Path, *, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Read a site file: defaults for the options of `parser`, by the names of their values.

    Raises `BadInput`, which names the key, for an unknown key or a value of another type.
    """
    try:
        # BaseLoader keeps every value as text: in YAML 1.1 the time 12:00:00 would be a number.
        text = path.read_text(encoding="utf-8")
        defaults = yaml.load(text, Loader=yaml.BaseLoader) or {}  # noqa: S506
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(
            f"site file {path}: cannot be read ({' '.join(str(error).split())})"
        ) from error
    if not isinstance(defaults, dict):
        raise BadInput(f"site file {path}: must hold lines such as 'partition: gpu'")
    # Only options with one value: a switch has no default to set here.
    known = {
        action.dest: action
        for action in parser._actions
        if action.option_strings and action.nargs is None and action.dest != "site"
    }
    for key, value in defaults.items():
        if key not in known:
            problem = f"unknown key {key!r}; valid: {', '.join(known)}{did_you_mean(key, known)}"
            raise BadInput(f"site file {path}: {problem}")
        is_number = known[key].type is int
        if not isinstance(value, str) or not re.fullmatch(r"\d+" if is_number else ".+", value):
            what = "a whole number" if is_number else "text in one line"
            raise BadInput(f"site file {path}: {key}: must be {what}, not {value!r}")
        if (choices := known[key].choices) and value not in choices:
            raise BadInput(f"site file {path}: {key}: {value!r} is none of {', '.join(choices)}")
    return {key: int(text) if known[key].type is int else text for key, text in defaults.items()}
