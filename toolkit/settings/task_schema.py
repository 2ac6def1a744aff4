"""What a recipe may say about the tasks that models are scored on, during training and after it.

Knows names, types and ranges of settings. Refuses to know how a task is read and scored.
"""

from typing import Literal

from toolkit.settings.section import Count, Fraction, Natural, Positive, Section, Text

Column = Count | Text  # a number from 1, or a name
Baseline = Literal["bm25"]  # what encoders are set beside: no model at all


class Retrieval(Section):
    """A retrieval task: a directory of shards, and JSON lines of queries. A line holds either the
    query and its relevant titles, or _id and text; the latter need `judgements` (.tsv as in BEIR,
    or the format of TREC)."""

    corpus: Text
    queries: Text
    judgements: Text | None = None


class Probe(Section):
    """The small task that a model is scored on before the first step and after every `every_steps`
    steps: graded pairs (`sts`, a .tsv or .csv file) or a retrieval task."""

    every_steps: Count
    sts: Text | None = None
    retrieval: Retrieval | None = None


class Classification(Section):
    """Labelled texts to train and to test a classifier on. As in MTEB, the score is the mean of
    `experiments` classifiers, each trained on `samples_per_label` texts per label (null: all)."""

    train: Text
    test: Text
    samples_per_label: Count | None = 8
    experiments: Count = 10


class Mteb(Section):
    """Tasks of MTEB by name, or all tasks of `benchmark`: one of MTEB's benchmarks, such as
    "MTEB(eng, v2)", or "llm2vec-15", the subset of the LLM2Vec paper. For `tasks` and that subset
    the test split is used (where there is one) in `languages` (ISO 639-3; English by default); a
    benchmark of MTEB defines its own splits and languages. `instructions`: use MTEB's own
    instruction for a task if the recipe has none."""

    tasks: tuple[Text, ...] = ()
    benchmark: Text | None = None
    languages: tuple[Text, ...] | None = None
    instructions: bool = False


class WordTask(Section):
    """A word-level task: the tags that one linear layer, trained on an encoder's frozen word
    vectors, gives the words of `test`.

    `train` and `test` are files of columns (.conll, .txt) or of CoNLL-U (.conllu), each also .gz,
    or the folder of a data set of Hugging Face's `datasets`; `format` is for names that do not say
    which. `column` holds the tags and `word_column` the words: names, or numbers counted from 1.

    `scheme` is how tags mark spans, whose F1 is then scored: "auto" recognises the scheme and reads
    tags as conlleval does, a name reads them strictly by that scheme, "none" scores no spans.
    `shift` takes a word's vector one token earlier, where MNTP has learnt to predict it; "both"
    gives the scores of both. A batch has `batch_sentences` sentences. The vectors are kept in
    memory, or in a file beside the scores (`cache`), where a later run of the same task reuses
    them.
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
