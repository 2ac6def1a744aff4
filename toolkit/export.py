# PYTHON_ARGCOMPLETE_OK
"""Export a run:  python -m toolkit.export RUN OUT    or an encoding:  ... ENC OUT.parquet

OUT is a folder of safetensors that sentence-transformers, transformers and this toolkit load.
"""

import argparse
import sys
from pathlib import Path

from toolkit.completion import answer_shell
from toolkit.door import guarded
from toolkit.encoding.parquet import write_parquet
from toolkit.encoding.plan import PLAN_FILE


def main(argv: list[str] | None = None) -> int:
    """The door `python -m toolkit.export`."""
    parser = argparse.ArgumentParser(
        prog="python -m toolkit.export",
        description="Merge a run's newest checkpoint into its base model, as one plain folder; or "
        "write the vectors of an encoding into one Parquet file.",
        epilog="example:\n  python -m toolkit.export embeddings/wikipedia wikipedia.parquet\n"
        "  python -m toolkit.export runs/simcse_mistral_7b my-encoder\n"
        '  python -c "from sentence_transformers import SentenceTransformer as S; '
        "print(S('my-encoder').encode('hello'))\"",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", type=Path, help="of toolkit.train, or the output_dir of toolkit.encode"
    )
    parser.add_argument("out", type=Path, help="what to write; it must not exist")
    answer_shell(parser)
    arguments = parser.parse_args(argv)
    return guarded(lambda: run(arguments.run, out=arguments.out))


def run(run_dir: Path, *, out: Path) -> None:
    """Write the encoder of a run, or the vectors of an encoding. Raises `BadInput` when there is
    nothing whole to export."""
    if (run_dir / PLAN_FILE).is_file():
        print(f"export: {write_parquet(run_dir, out=out):,} rows of {run_dir} are in {out}")
        return
    # Here and not above: the help text of a door must not wait for torch.
    from toolkit.training.encoder import write_encoder

    step = write_encoder(run_dir, out=out)
    print(f"export: step {step} of {run_dir} is in {out}")


if __name__ == "__main__":
    sys.exit(main())
