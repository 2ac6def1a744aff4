"""What a recipe may say of the tasks that encoders are scored on, after training and during it.

Knows names, types and ranges of settings. Refuses to know how a task is read and scored.
"""

from typing import Literal

from toolkit.settings.section import Count, Fraction, Natural, Positive, Section, Text

Column = Count | Text  # a number from 1, or a name


class Retrieval(Section):
    """A retrieval task: a directory of shards, and JSON lines of queries, either of query and
    relevant titles, or of _id and text with `judgements` (.tsv as in BEIR, or as in TREC)."""

    corpus: Text
    queries: Text
    judgements: Text | None = None


class Probe(Section):
    """What is looked at before the first step and after every `every_steps`: graded pairs (`sts`,
    a .tsv or .csv) or a retrieval task, small ones."""

    every_steps: Count
    sts: Text | None = None
    retrieval: Retrieval | None = None


class Classification(Section):
    """Labelled texts to train a classifier on and to test it with; as in MTEB, the mean of
    `experiments` on `samples_per_label` texts of each label (null: on all)."""

    train: Text
    test: Text
    samples_per_label: Count | None = 8
    experiments: Count = 10


class Mteb(Section):
    """Tasks of MTEB by name, or all of `benchmark`: one of MTEB's, such as "MTEB(eng, v2)", or
    "llm2vec-15", the subset of the LLM2Vec paper. Of `tasks` and of that subset the test part
    (where there is one) in `languages`, by ISO 639-3, English unless given; MTEB's benchmarks say
    theirs.
    `instructions`: MTEB's own, for tasks for which the recipe has none."""

    tasks: tuple[Text, ...] = ()
    benchmark: Text | None = None
    languages: tuple[Text, ...] | None = None
    instructions: bool = False


class WordTask(Section):
    """A word-level task: the tags that one linear layer, trained on an encoder's frozen word
    vectors, gives the words of `test`.

    A part is a file of columns (.conll, .txt), CoNLL-U (.conllu), each also .gz, or the folder of a
    data set of Hugging Face's `datasets`; `format` says so where the name does not. `column` holds
    the tags and `word_column` the words: names, or numbers counted from 1.

    `scheme` is how tags mark spans, for their F1: auto sees it and reads them as conlleval does,
    a name has them read strictly, none has no spans.
    `shift` takes a word's vector one token earlier, where MNTP has learnt to predict it; "both"
    gives the figures of both. A batch is `batch_sentences` sentences. The vectors are kept in
    memory, or in a file beside the scores (`cache`), where the same task finds them again.
    """

    train: Text
    test: Text
    format: Literal["auto", "conll", "conllu", "dataset"] = "auto"
    column: Column | None = None
    word_column: Column | None = None
    scheme: Literal["auto", "none", "iob1", "iob2", "iobes", "bilou"] = "auto"
    shift: bool | Literal["both"] = "both"
    steps: Count = 4000
    batch_sentences: Count = 8
    lr: Positive = 5e-4
    dropout: Fraction = 0.1
    seed: Natural = 42
    cache: Literal["memory", "disk"] = "memory"
    cache_dtype: Literal["fp32", "fp16"] = "fp32"
