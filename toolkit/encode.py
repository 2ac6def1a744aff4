"""The encoding program: a corpus in shards becomes vectors on disk, unit by unit.

    python -m toolkit.encode embed_corpus output_dir=... corpus.input=...     (alone)
    sbatch slurm/embed_corpus.sh output_dir=...                              (a SLURM array)
    mpirun -n 4 python -m toolkit.encode embed_corpus output_dir=...         (MPI)

A restart, with any number of workers, skips what is finished.
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cluster.mpi import wait_for_workers
from toolkit.cluster.preempt import StopSignal
from toolkit.cluster.topology import Topology, array_task, detect
from toolkit.console import Progress
from toolkit.door import recipe_door
from toolkit.encoding import plan, store
from toolkit.schema import EmbedRecipe, Recipe
from toolkit.text.shards import ShardSet, open_shards

if TYPE_CHECKING:
    from toolkit.encoding.encoder import Encoder


def run(recipe: EmbedRecipe, *, environ: Mapping[str, str]) -> None:
    """Embed this worker's units of `recipe` that are not there yet.

    Workers are array tasks times ranks, as `environ` tells. Raises `BadInput` before anything is
    written when corpus, model or output cannot be used.
    """
    # Before torch is imported, which takes seconds: a signal would end the process meanwhile.
    with StopSignal(environ) as stop:
        _run(recipe, environ=environ, stop=stop)


def _run(recipe: EmbedRecipe, *, environ: Mapping[str, str], stop: StopSignal) -> None:
    # Here and not above: the help text of a door must not wait for torch.
    from toolkit.encoding.encoder import Encoder
    from toolkit.parallel.comm import device_of

    topology = detect(environ)
    index, count = worker_of(topology, array=array_task(environ))
    output_dir = Path(recipe.output_dir)
    shards = open_shards(Path(recipe.corpus.input), verify=index == 0)
    encoder = Encoder(recipe.encoder, device=device_of(topology.local_rank))
    facts = plan.identity(
        recipe,
        corpus_digest=shards.digest,
        model_digest=encoder.digest(),
        num_rows=shards.num_rows,
    )
    plan.claim_directory(
        output_dir, facts=facts, model=recipe.encoder.model, corpus=recipe.corpus.input
    )
    mine = plan.share(
        plan.units(shards.num_rows, unit_rows=recipe.corpus.unit_rows), index=index, count=count
    )
    todo = [
        unit
        for unit in mine
        if not store.is_finished(output_dir, unit=unit, digest=facts["digest"])
    ]
    print(f"embed: worker {index + 1} of {count}: {len(mine)} units, {len(mine) - len(todo)} done")
    num_written = _embed(
        todo,
        shards=shards,
        encoder=encoder,
        output_dir=output_dir,
        digest=facts["digest"],
        should_stop=lambda: stop.received,
    )
    if num_written < len(todo):
        print(f"embed: told to stop; {len(todo) - num_written} units are left", flush=True)
        stop.leave(environ, leads=topology.rank == 0)
    # Under MPI the first process closes the encoding for all; else whoever comes last.
    closes = topology.launcher != "mpi" or wait_for_workers()
    if closes and store.write_manifest(output_dir):
        print(f"embed: all {shards.num_rows:,} rows are in {output_dir}")


def worker_of(topology: Topology, *, array: tuple[int, int]) -> tuple[int, int]:
    """Which of how many workers we are."""
    index, count = array
    return index * topology.world_size + topology.rank, count * topology.world_size


def _embed(
    todo: list[plan.Unit],
    *,
    shards: ShardSet,
    encoder: "Encoder",
    output_dir: Path,
    digest: str,
    should_stop: Callable[[], bool],
) -> int:
    """Embed and write units until told to stop; returns how many were written."""
    progress = Progress("embed", total=sum(unit.stop - unit.start for unit in todo), unit="rows")
    tokens_seen = 0

    def on_rows(rows: int, tokens: int) -> None:
        nonlocal tokens_seen
        tokens_seen += tokens
        progress.advance(rows, note=f"{tokens_seen:,} tokens")

    for number, unit in enumerate(todo):
        if should_stop():
            return number
        records = shards.records(unit.start, unit.stop)
        vectors_RD = encoder.encode([record["text"] for record in records], on_rows=on_rows)
        store.write_unit(
            output_dir, unit=unit, vectors_RD=vectors_RD, records=records, digest=digest
        )
    progress.close()
    return len(todo)


def main(argv: list[str] | None = None) -> int:
    """The door `python -m toolkit.encode`."""

    def action(recipe: Recipe) -> None:
        assert isinstance(recipe, EmbedRecipe)
        run(recipe, environ=os.environ)

    return recipe_door(
        argv,
        program="encode",
        about="Embed a corpus: alone, as a task of a SLURM array, or under MPI.",
        example="python -m toolkit.encode embed_corpus encoder.model=runs/simcse "
        "corpus.input=shards/wikipedia output_dir=embeddings/wikipedia",
        kinds=("embed",),
        run=action,
    )


if __name__ == "__main__":
    sys.exit(main())
