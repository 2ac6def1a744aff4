"""The program of an encoding: a corpus in shards becomes vectors on disk, unit by unit.

Composition only. Workers may come and go at any time; a restart, with any number of them, skips
what is finished.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.base.console import at_work, say
from toolkit.base.errors import BadInput
from toolkit.base.layout import MANIFEST_FILE
from toolkit.cluster.topology import Topology
from toolkit.encoding.chunks import rules_of
from toolkit.encoding.output import Output
from toolkit.encoding.progress import EncodingProgress
from toolkit.encoding.reuse import OldVectors, begin_reuse, open_old, record_reuse
from toolkit.encoding.schedule import Schedule
from toolkit.encoding.sharing import run_shared
from toolkit.encoding.store import VectorStore
from toolkit.encoding.units import (
    ChunkRules,
    claim_directory,
    identity,
    planned_dtype,
    units,
)
from toolkit.settings.model_schema import DType
from toolkit.settings.model_source import check_reference
from toolkit.settings.schema import EmbedRecipe
from toolkit.text.shards import ShardSet, open_shards

if TYPE_CHECKING:
    import torch

    from toolkit.encoding.encoder import Encoder


def run(recipe: EmbedRecipe, *, environ: Mapping[str, str]) -> None:
    """Embed those of `recipe`'s units that are not finished, together with any other workers.

    `EmbedRecipe` says how workers share the units. Raises `BadInput` before anything is written
    when corpus, model or output cannot be used.
    """
    run_shared(_Embedding(recipe), recipe, environ=environ)


class _Embedding:
    """The work of an encoding (`sharing.Work`)."""

    name = "embed"

    def __init__(self, recipe: EmbedRecipe) -> None:
        self._recipe = recipe

    def open(self, *, topology: Topology, verify: bool) -> Output:
        """Open corpus and model, and claim the output directory."""
        self._chunks = rules_of(self._recipe)
        self._shards, self._encoder, self._output, self._old = _open(
            self._recipe, topology=topology, verify=verify, chunks=self._chunks
        )
        return self._output

    def do(self, work: Schedule) -> None:
        """Embed and write the units that `work` gives."""
        _embed(
            work,
            shards=self._shards,
            encoder=self._encoder,
            output=self._output,
            chunks=self._chunks,
            old=self._old,
        )

    def tell(self) -> None:
        """Say what became of every row of the source, and what was taken over."""
        output, old = self._output, self._old
        say(f"embed: {output.directory}: {output.completeness()}")
        if old is not None and (output.directory / MANIFEST_FILE).is_file():
            say(f"embed: {record_reuse(VectorStore(output.directory), old)}")


@at_work("embed: opens corpus and model")
def _open(
    recipe: EmbedRecipe, *, topology: Topology, verify: bool, chunks: ChunkRules | None
) -> tuple[ShardSet, "Encoder", Output, OldVectors | None]:
    check_reference(recipe.encoder.model)
    shards = open_shards(Path(recipe.corpus.input), verify=verify)
    # Here and not above: neither the help text nor a refusal must wait for torch.
    from toolkit.model.precision import dtype_for
    from toolkit.parallel.comm import device_of

    device, output_dir = device_of(topology.local_rank), Path(recipe.output_dir)
    dtype = recipe.encoder.dtype
    if dtype == "auto":
        # The first worker's device decides for all others, and for every restart.
        dtype = planned_dtype(output_dir) or dtype_for("auto", device=device)
        try:
            return shards, *_claimed(recipe, shards, dtype=dtype, device=device, chunks=chunks)
        except BadInput:
            # While we loaded the model, a worker on another kind of device may have made the plan.
            there = planned_dtype(output_dir)
            if there is None or there == dtype:
                raise
            dtype = there
    return shards, *_claimed(recipe, shards, dtype=dtype, device=device, chunks=chunks)


def _claimed(
    recipe: EmbedRecipe,
    shards: ShardSet,
    *,
    dtype: DType,
    device: "torch.device",
    chunks: ChunkRules | None,
) -> tuple["Encoder", Output, OldVectors | None]:
    """The encoder in this number type; the output directory, which has a plan for it now; and the
    older encoding, if the recipe names one."""
    from toolkit.encoding.encoder import Encoder

    settings = recipe.encoder.model_copy(update={"dtype": dtype})
    recipe = recipe.model_copy(update={"encoder": settings})
    output_dir = Path(recipe.output_dir)
    encoder = Encoder(settings, device=device, dims=recipe.dims)
    if chunks:
        encoder.check_chunks(chunks)
    facts = identity(
        recipe,
        corpus_digest=shards.digest,
        model_digest=encoder.digest(),
        num_chars_N=shards.num_chars,
        chunks=chunks,
    )
    old = open_old(recipe.reuse, output_dir=output_dir, facts=facts)
    claim_directory(
        output_dir,
        facts=facts,
        model=recipe.encoder.model,
        adapters=recipe.encoder.adapters,
        corpus=recipe.corpus.input,
        source=shards.tally,
    )
    output = Output(
        output_dir,
        facts["digest"],
        units(facts["bounds"]),
        form=recipe.vectors,
        normalize=recipe.normalize,
        has_chunks=chunks is not None,
    )
    if old is not None:
        begin_reuse(output_dir, old, is_new=not output.finished())
    return encoder, output, old


def _embed(
    work: Schedule,
    *,
    shards: ShardSet,
    encoder: "Encoder",
    output: Output,
    chunks: ChunkRules | None,
    old: OldVectors | None,
) -> None:
    """Embed and write the units that `work` gives."""
    from toolkit.encoding.pipeline import Pipeline

    progress = EncodingProgress(output)
    pipeline = Pipeline(
        work,
        encoder=encoder,
        read=lambda unit: shards.records(unit.start, unit.stop),
        write=output.write,
        on_rows=progress.on_rows,
        chunks=chunks,
        old=old,
    )
    try:
        figures = pipeline.run()
    finally:
        progress.close()
    done = figures.rows or figures.reused
    say(f"embed: {figures}" if done else "embed: no unit was embedded here")
