"""Everything that is claimed of a GPU, measured on one: at most nine minutes, without a network.

    python -m tests.benchmarks.certify --out FILE.json              (a GPU)
    python -m tests.benchmarks.certify --out FILE.json --dry        (tiny shapes, on a CPU)
    python -m tests.benchmarks.certify --out FILE.json --parts mntp encode

FILE.json has what is known after every part; FILE.md the table. Each part is a process of its own
that is killed after its seconds. What is missing or fails is said, and the next part begins.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.certify.parts import PARTS, WHOLE_S
from tests.benchmarks.certify.table import table
from toolkit.base.files import write_atomic

ROOT = Path(__file__).parents[3]
END_S = 3.0  # for what remains to be written


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.certify")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file; the table beside it")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--dry", action="store_true", help="tiny shapes, on a CPU")
    parser.add_argument("--seconds", type=float, default=WHOLE_S, help="for all parts together")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        return child(arguments.parts[0], result=arguments.child, dry=arguments.dry)
    # Before the first start: a fork has the environment of the process that it is a fork of.
    os.environ["HF_HUB_OFFLINE"] = "1"
    ends = time.monotonic() + arguments.seconds
    found = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    for name in arguments.parts:
        left_s = ends - time.monotonic() - END_S
        found[name] = measured(name, dry=arguments.dry, left_s=left_s)
        write(arguments.out, found)
        said = found[name].get("error", "done")
        print(f"{name}: {said[:300]} ({found[name]['wall_s']:.1f} s)", flush=True)
    found["roofline"] = roofline(found, dry=arguments.dry)
    write(arguments.out, found)
    print(f"\n{table(found)}")
    return 0


def write(out: Path, found: dict[str, Any]) -> None:
    """Keep what is known, and the table of it."""
    write_atomic(out, json.dumps(found, indent=1).encode())
    write_atomic(out.with_suffix(".md"), table(found).encode())


def measured(name: str, *, dry: bool, left_s: float) -> dict[str, Any]:
    """What a part has found in a process of its own, which is killed after its seconds, with all
    that it has started."""
    seconds = min(PARTS[name].seconds * (5 if dry else 1), left_s)
    if seconds <= 1:
        return {"error": "no time was left", "wall_s": 0.0}
    # What was just killed may still write for a moment.
    with tempfile.TemporaryDirectory(prefix="certify-", ignore_cleanup_errors=True) as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log"
        command = [python(dry), "-m", "tests.benchmarks.certify", "--out", folder, "--parts", name]
        command += ["--child", str(result), *(["--dry"] if dry else [])]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        began = time.monotonic()
        with log.open("wb") as said:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environ, stdout=said, stderr=said, start_new_session=True
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=seconds)
        late = process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it has started
        process.wait()
        found: dict[str, Any] = json.loads(result.read_text()) if result.is_file() else {}
        found["wall_s"] = time.monotonic() - began
        if late:
            found["error"] = f"killed after {seconds:.0f} s"
        elif process.returncode and "error" not in found:
            said_last = log.read_text(errors="replace")[-1500:]
            found["error"] = f"exit code {process.returncode}: {said_last}"
        return found


def python(dry: bool) -> str:
    """The interpreter of a part: forks in a dry run, which cost less processor time."""
    if not dry or os.environ.get("CERTIFY_PYTHON") == sys.executable:
        return sys.executable
    from tests.forking.start import forked_python

    os.environ["CERTIFY_PYTHON"] = os.environ.get("CERTIFY_PYTHON") or forked_python()
    return os.environ["CERTIFY_PYTHON"]


def child(name: str, *, result: Path, dry: bool) -> int:
    """Run a part, and keep what it finds, or why it failed."""
    try:
        from tests.benchmarks.certify.machine import Machine, Notes
    except ImportError as error:
        write_atomic(result, json.dumps({"error": f"{error.name} is not installed"}).encode())
        return 1
    notes = Notes(result)
    folder = Path(tempfile.mkdtemp(prefix=f"certify-{name}-", dir=result.parent))
    try:
        PARTS[name].run(Machine(dry=dry, folder=folder), notes)
    except ImportError as error:
        notes.add(error=f"{error.name or error} is not installed in {sys.prefix}")
    except Exception as error:  # the other parts go on
        notes.add(error=f"{type(error).__name__}: {error}"[:1500])
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def roofline(found: dict[str, Any], *, dry: bool) -> dict[str, float]:
    """How many times what was measured the roofline is, with this device's own rates."""
    copy, product = (found.get("bandwidth", {}).get(key) for key in ("copy", "gate_proj"))
    measured_s = {
        "encode": found.get("encode", {}).get("all_tokens_per_s"),
        "mntp": found.get("mntp", {}).get("4k_all_tokens_per_s"),
    }
    if not (copy and product):
        return {}
    from tests.benchmarks.roofline import ALL, Case, Reached, config_of, trace

    config, reached = config_of("tiny" if dry else "mistral-7b"), Reached(product, copy)
    cases = {"encode": Case("encode", ALL - {"lora"}, rows=32), "mntp": Case("mntp", ALL)}
    return {
        name: trace(config, case).tokens_per_s(reached) / rate
        for name, case in cases.items()
        if isinstance(rate := measured_s[name], float)
    }


if __name__ == "__main__":
    sys.exit(main())
