"""What a recipe may say about the stages that adapt an encoder to a domain.

Knows names, types and ranges of settings. Refuses to know what is done with them.
"""

from typing import Annotated, Literal

from pydantic import Field

from toolkit.settings.section import Count, Fraction, Natural, Positive, Section, Seed, Text


class DocumentsRecipe(Section):
    """The documents of a domain as shards, and which of them are for training, dev and test.

    `source` is a folder or a file of documents, as data_scripts/shard_wikipedia.py reads them; each
    text file (.txt, .md, .rst) is one document. A document longer than `passage_chars` becomes
    passages (null: it stays whole); all passages of a document are in the same part. Of texts that
    are the same (`deduplicate`: exactly, but for case and white space, or nearly) the first stays.

    `dev_documents` and `test_documents` documents are drawn by `seed`, at most a fifth of all for
    each. Fewer than `least_documents` documents are refused.
    """

    kind: Literal["documents"]
    output_dir: Text
    source: Text
    text_column: Text = "text"
    id_column: Text = "id"
    title_column: Text = "title"
    language: Text = "en"
    passage_chars: Annotated[int, Field(ge=200)] | None = 2000
    deduplicate: Literal["exact", "normalized", "near"] = "near"
    max_bad_fraction: Fraction = 0.05
    dev_documents: Count = 100
    test_documents: Count = 300
    least_documents: Count = 50
    seed: Seed = 1


class MineRecipe(Section):
    """Hard negatives for training pairs, as data_scripts/mine_negatives.py finds them: the rows of
    the encoding `embeddings` that are nearest to a query and do not answer it.

    `depth` nearest rows are considered, without the first `skip`, and without those whose cosine is
    above `max_ratio` times that of the positive. `batch_queries` queries are searched for at once.
    """

    kind: Literal["mine"]
    output_dir: Text
    pairs: Text
    embeddings: Text
    negatives: Count = 7
    depth: Count = 100
    skip: Natural = 0
    max_ratio: Positive = 0.95
    batch_queries: Count = 4096


class ReportRecipe(Section):
    """The page of a run, as toolkit.report draws it, in `output_dir`."""

    kind: Literal["report"]
    output_dir: Text
    run: Text
