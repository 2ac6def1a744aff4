"""What a training run reads: the tokenizer, the token files, the stream of samples.

Knows which data each kind of recipe reads.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from toolkit.base.console import at_work, say, warn
from toolkit.base.errors import BadInput
from toolkit.batching.tokenizer import text_tokenizer, tokenize_part
from toolkit.model.attention_kernels import PACKED
from toolkit.model.backbone import load_config, num_embeddings
from toolkit.parallel import comm
from toolkit.settings.mixture_schema import single_source, sources_of
from toolkit.settings.model_source import ModelSource
from toolkit.settings.schema import GradedRecipe, MntpRecipe, SupervisedRecipe, TrainingRecipe
from toolkit.text.held_out import HeldOut
from toolkit.text.mixture import Mixture
from toolkit.text.pair_stream import PairStream
from toolkit.text.pairs import open_pairs, text_hash
from toolkit.text.shards import open_shards
from toolkit.text.stream import Blocks, HeldOutBlocks, Samples, Sentences, Stream
from toolkit.text.token_shards import (
    FORMAT,
    TokenFiles,
    finish_token_files,
    open_tokens,
)
from toolkit.text.tokens import TextTokenizer
from toolkit.training.graded import GradedPairs
from toolkit.training.teacher import open_teaching

MANY_EPOCHS = 10  # of a source, beyond which a recipe was probably meant otherwise


def is_packed(recipe: TrainingRecipe) -> bool:
    """Whether the texts of a batch follow one another in one row, without padding."""
    return recipe.model.attention == PACKED


def open_tokenizer(recipe: TrainingRecipe, *, base: ModelSource) -> TextTokenizer:
    """The base model's tokenizer, which cuts texts at the recipe's `data.max_tokens`, with the
    tokens around a text that `model.pooling` and `model.begin_token` ask for."""
    return text_tokenizer(
        base,
        max_tokens=recipe.data.max_tokens,
        num_embeddings=num_embeddings(load_config(base)),
        trained=recipe.model,
    )


def make_tokens(recipe: TrainingRecipe, *, tokenizer: TextTokenizer) -> None:
    """Tokenise and pack the shards unless that has been done, each rank a part. Collective."""
    if not isinstance(recipe, MntpRecipe):
        return
    sources = token_files(recipe, tokenizer=tokenizer)
    for files in sources:
        _make_tokens(files)
        if comm.rank() == 0:
            named = f"{files.shards}: " if len(sources) > 1 else ""
            say(f"{named}{open_tokens(files).summary}")


def _make_tokens(files: TokenFiles) -> None:
    complete, leads = files.is_complete(), comm.rank() == 0
    # No rank writes until all have looked: one that found the files complete by then would skip
    # the work, and its barriers would no longer match those of the others.
    comm.barrier()
    if not complete:
        part, parts = comm.rank(), comm.world_size()
        tokenize_part(files, part=part, parts=parts, title="tokenise", shown=leads)
    comm.barrier()
    # The ranks have written parts; rank 0 joins them.
    if leads and not complete:
        assert finish_token_files(files)
    comm.barrier()


def digest_of_data(recipe: TrainingRecipe, *, verify: bool) -> str:
    """The digest of the content of `data.train`. Raises `BadInput` when the data are absent, of the
    wrong kind, or damaged (files are hashed with `verify` only), or lack a data set that the recipe
    names. A teacher is a part of the data; with `verify` it must have every text that is read."""
    with at_work(f"checks {', '.join(sources_of(recipe.data.train))}", shown=verify):
        digest = _digest_of(recipe, verify=verify)
    teaching = open_teaching(recipe)
    if teaching is None:
        return digest
    if verify:
        with at_work("checks that the teacher has all texts", shown=True):
            queries, documents = hashes_read(recipe)
            teaching.check(queries=queries, documents=documents)
    return hashlib.sha256(f"{digest}\n{teaching.digest}".encode()).hexdigest()


def texts_read(recipe: TrainingRecipe) -> Iterator[tuple[str, bool]]:
    """Each text that a contrastive recipe reads in all its steps, in their order and as often as it
    reads it, and whether it is a query of pairs."""
    stream, rows = _open_texts(recipe), recipe.train.global_batch_rows
    for step in range(recipe.train.steps):
        for sample in stream.batch(step, global_rows=rows, start=0, stop=rows):
            if isinstance(sample.content, str):
                yield sample.content, False
                continue
            pair, task = sample.content.pair, sample.content.task
            assert isinstance(recipe, SupervisedRecipe)
            wanted = min(recipe.supervised.num_hard_negatives, task.max_negatives)
            yield pair.query, True
            yield from ((text, False) for text in (pair.positive, *pair.negatives[:wanted]))


def hashes_read(recipe: TrainingRecipe) -> tuple[set[int], set[int]]:
    """The hashes of all queries, and of all other texts, of `texts_read`."""
    queries: set[int] = set()
    others: set[int] = set()
    for text, is_query in texts_read(recipe):
        (queries if is_query else others).add(text_hash(text))
    return queries, others


def _digest_of(recipe: TrainingRecipe, *, verify: bool) -> str:
    if isinstance(recipe, SupervisedRecipe):
        directory = _folder(recipe)
        pairs = open_pairs(directory, verify=verify)
        names = sorted(task.name for task in pairs.tasks)
        if unknown := sorted(set(recipe.supervised.scales) - set(names)):
            raise BadInput(
                f"supervised.scales: {unknown[0]!r} is not a data set of {directory}; it has "
                f"{', '.join(names)}"
            )
        return pairs.digest
    if isinstance(recipe, GradedRecipe):
        return GradedPairs(_folder(recipe)).digest
    found: dict[str, str] = {}
    for source in sources_of(recipe.data.train):
        digest = open_shards(Path(source), verify=verify).digest
        if digest in found:
            raise BadInput(
                f"data.train: {found[digest]} and {source} hold the same shards; name them once"
            )
        found[digest] = source
    # Their shares are no data: `check_run_dir` refuses a run that goes on with others.
    return digest if len(found) == 1 else hashlib.sha256("\n".join(found).encode()).hexdigest()


def open_stream(recipe: TrainingRecipe, *, tokenizer: TextTokenizer) -> Samples:
    """The samples of a recipe's data, once `admission.check` and `make_tokens` have run."""
    if not isinstance(recipe, MntpRecipe):
        return _open_texts(recipe)
    crossing, streams = recipe.mntp.cross_documents, []
    for number, files in enumerate(token_files(recipe, tokenizer=tokenizer)):
        tokens, held_out = open_tokens(files), None
        if recipe.data.held_out_documents:
            held_out = HeldOutBlocks(tokens, crossing=crossing)
        blocks = Blocks(tokens, crossing=crossing)
        streams.append(Stream(blocks, seed=recipe.train.seed + number, held_out=held_out))
    return _joined(streams, recipe=recipe)


def tell_epochs(recipe: TrainingRecipe, *, stream: Samples) -> None:
    """Say how often the samples of each source of a mixture come; warn where that is very often."""
    if not isinstance(stream, Mixture):
        return
    steps = recipe.train.steps
    epochs = stream.epochs(steps * recipe.train.global_batch_rows)
    for source, share in sources_of(recipe.data.train).items():
        line = (
            f"{source}: {share:.4g} of all rows, of {stream.sizes[source]:,} samples; in "
            f"{steps:,} steps {epochs[source]:.3g} epochs"
        )
        if epochs[source] > MANY_EPOCHS:
            warn(f"{line}: the same texts again and again; give it a smaller share, or more text")
        else:
            say(line)


def _open_texts(recipe: TrainingRecipe) -> Samples:
    if isinstance(recipe, SupervisedRecipe):
        pairs = open_pairs(_folder(recipe), verify=False)
        return PairStream(pairs, seed=recipe.train.seed)
    if isinstance(recipe, GradedRecipe):
        return Stream(GradedPairs(_folder(recipe)), seed=recipe.train.seed)
    opened = [open_shards(Path(source), verify=False) for source in sources_of(recipe.data.train)]
    streams = [
        Stream(Sentences(shards, held_out=held_out_by(recipe)), seed=recipe.train.seed + number)
        for number, shards in enumerate(opened)
    ]
    return _joined(streams, recipe=recipe)


def _joined(streams: Sequence[Stream[Any]], *, recipe: TrainingRecipe) -> Samples:
    """The stream of the only source, or the mixture of those of several."""
    if len(streams) == 1:
        return streams[0]
    shares = sources_of(recipe.data.train)
    named = dict(zip(shares, streams, strict=True))
    return Mixture(named, shares=list(shares.values()))


def _folder(recipe: TrainingRecipe) -> Path:
    """What a kind that does not mix reads: a folder of pairs, or a file of graded ones."""
    return Path(single_source(recipe.data.train))


def held_out_by(recipe: TrainingRecipe) -> HeldOut:
    """The documents that the recipe holds out."""
    return HeldOut(documents=recipe.data.held_out_documents, seed=recipe.train.seed)


def form_of_samples(recipe: TrainingRecipe) -> str:
    """The format of packed blocks, which also decides what a step reads; empty without packing."""
    return FORMAT if isinstance(recipe, MntpRecipe) else ""


def token_files(recipe: TrainingRecipe, *, tokenizer: TextTokenizer) -> list[TokenFiles]:
    """Where the tokens of a recipe's shards are, or will be, by source."""
    return [
        TokenFiles(
            shards=Path(source).absolute(),
            tokenizer=tokenizer,
            block_tokens=recipe.data.max_tokens,
            held_out=held_out_by(recipe),
        )
        for source in sources_of(recipe.data.train)
    ]
