"""List the texts that a contrastive recipe reads, for a teacher to encode.

Knows its command line. What a recipe reads is known by toolkit.training.data.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit.base.console import at_work, say
from toolkit.base.errors import BadInput
from toolkit.base.files import create_atomic
from toolkit.command_line.door import Parser, guarded

EXAMPLES = """example: a supervised run that also learns from the similarities of another encoder
  python data_scripts/list_texts.py supervised_mistral_7b data.train=pairs/legal \\
      --output texts.jsonl
  python data_scripts/shard_wikipedia.py --input texts.jsonl --output shards/texts
  python -m toolkit.encode embed_corpus encoder.model=TEACHER corpus.input=shards/texts \\
      output_dir=embeddings/teacher
  python -m toolkit.train supervised_mistral_7b data.train=pairs/legal \\
      supervised.teacher.embeddings=embeddings/teacher

Each text is listed once, with its hash as its id. A recipe with more steps or another seed reads
other texts. For a teacher with a prompt for queries, list and encode both kinds (--only) and name
the queries' encoding as supervised.teacher.query_embeddings.
"""
QUERIES, DOCUMENTS = "queries", "documents"


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit code: 0 done, 2 the input cannot be used."""
    parser = Parser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="a recipe of kind simcse or supervised")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, required=True, help="the JSON lines to write")
    parser.add_argument("--only", choices=(QUERIES, DOCUMENTS), help="default: both")
    arguments = parser.parse_intermixed_args(argv)  # overrides may stand behind options
    return guarded(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Write the texts and say how many there are."""
    from toolkit.settings.recipes import load_recipe
    from toolkit.settings.schema import SimcseRecipe, SupervisedRecipe
    from toolkit.text.pairs import text_id

    recipe = load_recipe(arguments.recipe, overrides=arguments.overrides)
    if not isinstance(recipe, (SimcseRecipe, SupervisedRecipe)):
        kind = getattr(recipe, "kind", "pipeline")
        raise BadInput(f"{arguments.recipe}: is of kind {kind}; give one of simcse or supervised")
    # Imported here, so that neither the help text nor a refusal waits for torch.
    from toolkit.training.data import texts_read

    wanted = {QUERIES: (True,), DOCUMENTS: (False,)}.get(arguments.only, (True, False))
    lines: dict[str, str] = {}
    with at_work(f"lists the texts of {recipe.train.steps:,} steps"):
        for text, is_query in texts_read(recipe):
            if is_query in wanted and (name := text_id(text)) not in lines:
                lines[name] = json.dumps({"id": name, "text": text}, ensure_ascii=False) + "\n"
    if not lines:
        raise BadInput(f"{arguments.recipe}: reads no {arguments.only}; leave --only out")
    if not create_atomic(arguments.output, "".join(lines.values())):
        raise BadInput(f"{arguments.output}: is there already; give another --output")
    say(f"{arguments.output}: {len(lines):,} texts of {recipe.train.steps:,} steps")


if __name__ == "__main__":
    sys.exit(main())
