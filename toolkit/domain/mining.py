"""Hard negatives for a directory of pairs, from an encoded corpus.

Knows directories, and how to report what was left out. Refuses to know what a negative is
(`encoding.negatives`).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from toolkit.base.console import Progress, at_work, say, warn
from toolkit.base.errors import BadInput
from toolkit.base.files import digest_of, is_committed
from toolkit.encoding.snippets import corpus_of
from toolkit.encoding.store import VectorStore
from toolkit.settings.domain_schema import MineRecipe
from toolkit.text.pairs import (
    Pair,
    PairSet,
    PairTask,
    checked_manifest,
    open_pairs,
    write_pairs,
)


@dataclasses.dataclass(frozen=True)
class ByHand:
    """What data_scripts/mine_negatives.py gives beside a recipe: the encoder and the shards of the
    encoding, if they were moved. Advice then names its options, and not the keys of a recipe."""

    model: str | None = None
    corpus: Path | None = None


def run(recipe: MineRecipe, *, by_hand: ByHand | None = None) -> None:
    """Write the pairs with their new negatives. Raises `BadInput` for numbers that leave no
    candidates."""
    output, places = Path(recipe.output_dir), by_hand or ByHand()
    if recipe.skip >= recipe.depth:
        raise BadInput(f"skip {recipe.skip}: leaves nothing of depth {recipe.depth}")
    pairs = open_pairs(Path(recipe.pairs))
    store = VectorStore(Path(recipe.embeddings))
    sources = _sources(recipe, pairs=pairs, store=store)
    if is_committed(output):
        if checked_manifest(output, verify=False)["sources"] != sources:
            raise BadInput(
                f"{output}: holds pairs that were mined from others, or by other rules; choose "
                "another output_dir, or delete it, and what was trained on it"
            )
        say(f"{output}: these pairs are already there; nothing to do")
        return
    if store.has_chunks:
        raise BadInput(
            f"{recipe.embeddings}: holds vectors of chunks; encode without corpus.chunk_tokens"
        )
    with at_work("mine: compares the corpus with its digests"):
        shards = corpus_of(store, corpus=places.corpus, verify=True)
    # Imported here, so that no refusal waits for torch.
    from toolkit.encoding.encoder import encoder_of
    from toolkit.encoding.negatives import Miner, MiningRules

    miner = Miner(
        store,
        encoder=encoder_of(store, model=places.model),
        text_of=shards.text,
        rules=MiningRules(
            recipe.negatives, recipe.depth, skip=recipe.skip, max_ratio=recipe.max_ratio
        ),
    )
    progress = Progress("mine", total=int(pairs.num_rows.sum()), unit="pairs")
    num_found = 0

    def mined(number: int, task: PairTask) -> Iterator[Pair]:
        nonlocal num_found
        whole = [pairs.pair(number, row) for row in range(int(pairs.num_rows[number]))]
        for pair, negatives in miner.mine(whole, task=task, batch=recipe.batch_queries):
            num_found += len(negatives)
            progress.advance(1)
            yield Pair(pair.query, pair.positive, negatives)

    manifest = write_pairs(
        ((task, mined(number, task)) for number, task in enumerate(pairs.tasks)),
        output=output,
        sources=sources,
        quarantine=[],
    )
    progress.close()
    _report(recipe, num_pairs=manifest["rows"], num_found=num_found, left_out=miner.left_out)
    hint = hint_of(miner.left_out, num_found=num_found, by_options=by_hand is not None)
    if hint and num_found < recipe.negatives * manifest["rows"]:
        warn(hint)


def _sources(recipe: MineRecipe, *, pairs: PairSet, store: VectorStore) -> list[dict[str, str]]:
    """What decides the output, with its digests."""
    rules = recipe.model_dump(include={"negatives", "depth", "skip", "max_ratio"})
    return [
        {"name": Path(recipe.pairs).name, "sha256": pairs.digest},
        {"name": Path(recipe.embeddings).name, "sha256": store.manifest["digest"]},
        {"name": "rules of mining", "sha256": digest_of(rules)},
    ]


def _report(
    recipe: MineRecipe, *, num_pairs: int, num_found: int, left_out: Mapping[str, int]
) -> None:
    for reason, count in sorted(left_out.items(), key=lambda item: -item[1]):
        say(f"{count:>12,} left out: {reason}")
    say(f"{recipe.output_dir}: {num_pairs:,} pairs, {num_found / num_pairs:.2f} negatives each")


def hint_of(left_out: Mapping[str, int], *, num_found: int, by_options: bool) -> str:
    """The advice if pairs have too few negatives because most candidates are too near to the query;
    empty if that is not the reason."""
    from toolkit.encoding.negatives import TOO_NEAR

    num_near, num_all = left_out.get(TOO_NEAR, 0), num_found + sum(left_out.values())
    if 2 * num_near <= num_all:
        return ""
    ratio, depth = ("--max-ratio", "--depth") if by_options else ("max_ratio", "depth")
    return (
        f"{num_near:,} of {num_all:,} candidates are too near to the query: give a larger "
        f"{ratio} (1 leaves out only what is nearer than the positive), or a larger {depth}"
    )
