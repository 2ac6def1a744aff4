"""The files of the project: those that git has, and new ones that it would take."""

import subprocess
from pathlib import Path


def project_files(root: Path, *patterns: str) -> list[str]:
    """Their paths from the root, of those that match one of git's patterns, or of all."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(
        [*command, "--", *patterns], cwd=root, capture_output=True, text=True, check=True
    )
    return [name for name in done.stdout.split("\0") if name and (root / name).is_file()]
