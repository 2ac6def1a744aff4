# PYTHON_ARGCOMPLETE_OK
"""Export a run:  python -m toolkit.export RUN OUT    or an encoding:  ... ENC OUT.parquet|OUT.lance

OUT is a folder of safetensors that sentence-transformers, transformers and this toolkit load, and
with --format also llm2vec or PEFT. RUN may also be a model, with adapters in PEFT's layout to merge
into it, such as McGill-NLP has published.
"""

import argparse
import sys
from pathlib import Path

from toolkit.base.console import say
from toolkit.base.errors import BadInput
from toolkit.base.layout import CHOSEN_FILE, PLAN_FILE
from toolkit.command_line.completion import answer_shell
from toolkit.command_line.door import Parser, guarded
from toolkit.encoding.lance_dataset import write_lance
from toolkit.encoding.parquet import write_parquet
from toolkit.settings.model_source import check_reference, is_adapter, resolve_model
from toolkit.training.runs import refuse_taken, run_recipe

WRITERS = {".parquet": write_parquet, ".lance": write_lance}
FORMATS = {
    "merged": "for sentence-transformers and transformers (the default)",
    "llm2vec": "the same, written so that llm2vec 0.2.3 loads it too",
    "peft": "a run's adapter alone",
}


def main(argv: list[str] | None = None) -> int:
    """The door `python -m toolkit.export`."""
    parser = Parser(
        prog="python -m toolkit.export",
        description="Merge a run's newest checkpoint into its base model, as one plain folder; or "
        "write the vectors of an encoding into one Parquet file (OUT.parquet) or a Lance dataset "
        "(OUT.lance; pip install pylance).",
        epilog="examples:\n  python -m toolkit.export embeddings/wikipedia wikipedia.parquet\n"
        "  python -m toolkit.export runs/simcse_mistral_7b my-encoder\n"
        '  python -c "from sentence_transformers import SentenceTransformer as S; '
        "print(S('my-encoder').encode('hello'))\"\n"
        "  python -m toolkit.export McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp OUT \\\n"
        "    --adapters McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp-unsup-simcse",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        metavar="RUN",
        help="directory of toolkit.train or toolkit.encode, or a model or adapter",
    )
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="folder or file to write; it must not exist"
    )
    formats = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    parser.add_argument("--format", choices=FORMATS, default="merged", help=formats)
    parser.add_argument(
        "--adapters",
        nargs="+",
        default=[],
        metavar="A",
        help="adapters to merge into RUN, in this order",
    )
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16"),
        help="type of the weights (default: as trained, or the base's)",
    )
    parser.add_argument(
        "--scores", type=Path, metavar="FILE", help="scores.json for the model card"
    )
    parser.add_argument(
        "--base-name",
        metavar="NAME",
        help="with --format peft: what to call the model that the first stage began with (default: "
        "the folder of the run's own base)",
    )
    answer_shell(parser)
    arguments = parser.parse_args(argv)
    return guarded(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Write the encoder of a run, or the vectors of an encoding. Raises `BadInput` when there is
    nothing whole to export."""
    source, out = arguments.source, arguments.out
    if (Path(source) / PLAN_FILE).is_file():
        if out.suffix not in WRITERS:
            valid = " or ".join(WRITERS)
            raise BadInput(f"{out}: an encoding is exported; give a name that ends in {valid}")
        say(f"export: {WRITERS[out.suffix](Path(source), out=out):,} rows of {source} are in {out}")
        return
    is_model = bool(arguments.adapters) or _is_model(source)
    refuse_taken(out)
    if is_model:
        check_reference(source)
    else:
        run_recipe(Path(source))
    # Here and not above: neither the help text nor a refusal must wait for torch.
    from toolkit.training.export import Export, write_chain, write_encoder

    export = Export(
        form=arguments.format,
        dtype=arguments.dtype,
        scores=arguments.scores,
        base_name=arguments.base_name,
    )
    if is_model:
        merged = write_chain(source, adapters=arguments.adapters, out=out, export=export)
        say(f"export: {' + '.join(merged)} is in {out}")
        return
    step = write_encoder(Path(source), out=out, export=export)
    say(f"export: step {step} of {source} is in {out}")


def _is_model(source: str) -> bool:
    """Whether `source` is a model or an adapter, and not a run."""
    path = Path(source)
    # A path that exists is never looked up on the hub.
    if path.exists():
        names = ("config.json", CHOSEN_FILE)
        return is_adapter(path) or any((path / name).is_file() for name in names)
    try:
        resolve_model(source)
    except BadInput:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
