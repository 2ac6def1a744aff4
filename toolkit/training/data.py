"""What a training run reads: the tokenizer, the token files, the stream of samples.

Knows which data each kind of recipe reads.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from toolkit.base.console import at_work, say
from toolkit.base.errors import BadInput
from toolkit.batching.tokenizer import text_tokenizer, tokenize_part
from toolkit.model.attention import PACKED
from toolkit.model.backbone import load_config, num_embeddings
from toolkit.parallel import comm
from toolkit.settings.model_source import ModelSource
from toolkit.settings.schema import GradedRecipe, MntpRecipe, SupervisedRecipe, TrainingRecipe
from toolkit.text.held_out import HeldOut
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
    files = token_files(recipe, tokenizer=tokenizer)
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
    if leads:
        say(open_tokens(files).summary)


def digest_of_data(recipe: TrainingRecipe, *, verify: bool) -> str:
    """The digest of the content of `data.train`. Raises `BadInput` when the data are absent, of the
    wrong kind, or damaged (files are hashed with `verify` only), or lack a data set that the recipe
    names. A teacher is a part of the data; with `verify` it must have every text that is read."""
    directory = Path(recipe.data.train)
    with at_work(f"checks {directory}", shown=verify):
        digest = _digest_of(directory, recipe=recipe, verify=verify)
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


def _digest_of(directory: Path, *, recipe: TrainingRecipe, verify: bool) -> str:
    if isinstance(recipe, SupervisedRecipe):
        pairs = open_pairs(directory, verify=verify)
        names = sorted(task.name for task in pairs.tasks)
        if unknown := sorted(set(recipe.supervised.scales) - set(names)):
            raise BadInput(
                f"supervised.scales: {unknown[0]!r} is not a data set of {directory}; it has "
                f"{', '.join(names)}"
            )
        return pairs.digest
    if isinstance(recipe, GradedRecipe):
        return GradedPairs(directory).digest
    return open_shards(directory, verify=verify).digest


def open_stream(recipe: TrainingRecipe, *, tokenizer: TextTokenizer) -> Samples:
    """The samples of a recipe's data, once `admission.check` and `make_tokens` have run."""
    if isinstance(recipe, MntpRecipe):
        tokens = open_tokens(token_files(recipe, tokenizer=tokenizer))
        blocks = Blocks(tokens, crossing=recipe.mntp.cross_documents)
        held_out = None
        if recipe.data.held_out_documents:
            held_out = HeldOutBlocks(tokens, crossing=recipe.mntp.cross_documents)
        return Stream(blocks, seed=recipe.train.seed, held_out=held_out)
    return _open_texts(recipe)


def _open_texts(recipe: TrainingRecipe) -> Samples:
    if isinstance(recipe, SupervisedRecipe):
        pairs = open_pairs(Path(recipe.data.train), verify=False)
        return PairStream(pairs, seed=recipe.train.seed)
    if isinstance(recipe, GradedRecipe):
        return Stream(GradedPairs(Path(recipe.data.train)), seed=recipe.train.seed)
    shards = open_shards(Path(recipe.data.train), verify=False)
    return Stream(Sentences(shards, held_out=held_out_by(recipe)), seed=recipe.train.seed)


def held_out_by(recipe: TrainingRecipe) -> HeldOut:
    """The documents that the recipe holds out."""
    return HeldOut(documents=recipe.data.held_out_documents, seed=recipe.train.seed)


def form_of_samples(recipe: TrainingRecipe) -> str:
    """The format of packed blocks, which also decides what a step reads; empty without packing."""
    return FORMAT if isinstance(recipe, MntpRecipe) else ""


def token_files(recipe: TrainingRecipe, *, tokenizer: TextTokenizer) -> TokenFiles:
    """Where the tokens of a recipe's shards are, or will be."""
    return TokenFiles(
        shards=Path(recipe.data.train).absolute(),
        tokenizer=tokenizer,
        block_tokens=recipe.data.max_tokens,
        held_out=held_out_by(recipe),
    )
