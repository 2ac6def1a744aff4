"""Make a model folder of a GGUF file, the format of llama.cpp.

Knows its command line. All the work is in toolkit.model.gguf.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit.base.console import say
from toolkit.command_line.door import Parser, guarded

EXAMPLES = """examples:
  python data_scripts/convert_gguf.py SmolLM2-135M-Instruct.Q4_1.gguf --output models/smollm2
  python -m toolkit.launch mntp_sheared_llama_1b model.base=models/smollm2

Needs the package gguf (pip install gguf), and memory for all weights in fp32. The folder has no
chat template. Exit codes: 0 the folder is written, 2 the file cannot be converted.
"""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; argparse itself exits with code 2."""
    parser = Parser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE.gguf", help="a decoder in GGUF")
    parser.add_argument(
        "--output", type=Path, required=True, help="the model folder; it must not exist"
    )
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16"),
        default="fp32",
        help="type of the weights that are written (default: fp32)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    arguments = parse_arguments(argv)

    def convert() -> None:
        from toolkit.model.gguf import convert_gguf

        header = convert_gguf(arguments.file, output=arguments.output, dtype=arguments.dtype)
        types = ", ".join(f"{count} {name}" for name, count in header.tensor_types.items())
        say(f"{arguments.output}: {header.architecture} in {arguments.dtype}, of tensors: {types}")

    return guarded(convert)


if __name__ == "__main__":
    sys.exit(main())
