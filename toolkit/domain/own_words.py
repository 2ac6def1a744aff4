"""Training pairs that documents hold by themselves: a title or a sentence, and the text without it.

Knows titles, sentences and seeds. Refuses to know models, files, and how pairs are stored.

Sources: titles and their texts as in E5 (Wang 2022, arXiv 2212.03533); a sentence and the passage
around it is the inverse cloze task (Lee 2019, arXiv 1906.00300), which also leaves the sentence in
the passage for a share of the pairs.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from toolkit.domain.filters import repeated, words_of
from toolkit.domain.writing import draws_of
from toolkit.settings.questions_schema import OwnWords
from toolkit.text.filters import language_of
from toolkit.text.pairs import Pair
from toolkit.text.sentences import sentence_spans

TITLES, SENTENCES = "titles", "sentences"
TITLE_WORDS = 2  # of one word, too many texts speak
ENDS = " \t\n.:;,-"  # between a title and what follows

Record = Mapping[str, str]


def own_pairs(records: Iterable[Record], *, settings: OwnWords, seed: int) -> dict[str, list[Pair]]:
    """The pairs of each data set that `settings` ask for, in the order of the documents.

    Left out: a title of one word, one that has fewer than half of its words in common with its text
    (such as the name of a file), and one that an earlier document has; a sentence that stands in
    two documents. What is drawn depends on the seed and the id of the document alone."""
    titles: list[Pair] = []
    sentences: list[Pair] = []
    for record in records:
        if settings.titles:
            titles += _title_pair(record, settings=settings, seed=seed)
        if settings.sentences:
            sentences += _sentence_pairs(record, settings=settings, seed=seed)
    again = repeated([pair.query for pair in titles])
    titles = [pair for pair, is_again in zip(titles, again, strict=True) if not is_again]
    keys = [" ".join(words_of(pair.query)) for pair in sentences]
    times = Counter(keys)
    sentences = [pair for pair, key in zip(sentences, keys, strict=True) if times[key] == 1]
    made = {TITLES: titles, SENTENCES: sentences}
    return {name: pairs for name, pairs in made.items() if pairs}


def _title_pair(record: Record, *, settings: OwnWords, seed: int) -> Iterator[Pair]:
    title, text = record["title"].strip(), record["text"]
    rest = without_title(text, title=title)
    words, known = words_of(title), set(words_of(rest))
    if len(words) < TITLE_WORDS or 2 * sum(word in known for word in words) < len(words):
        return
    (draw,) = draws_of(seed, document=f"{TITLES}\0{record['id']}", number=0, steps=1)
    yield Pair(title, text if draw < settings.left_in else rest)


def without_title(text: str, *, title: str) -> str:
    """The text without the title with which it begins, if it does."""
    rest = text[len(title) :]
    begins_so = text[: len(title)].casefold() == title.casefold() and not rest[:1].isalnum()
    return rest.lstrip(ENDS) if title and begins_so else text


def _sentence_pairs(record: Record, *, settings: OwnWords, seed: int) -> Iterator[Pair]:
    """`settings.sentences` sentences of the text, drawn without replacement, in order."""
    text, title = record["text"], record["title"].strip()
    body = len(text) - len(without_title(text, title=title))
    spans = [
        (start, end)
        for start, end in sentence_spans(
            text, language=language_of(text), min_words=settings.min_words
        )
        if start >= body
    ]
    draws = draws_of(seed, document=f"{SENTENCES}\0{record['id']}", number=0, steps=2 * len(spans))
    drawn = sorted(range(len(spans)), key=lambda place: draws[place])
    for place in sorted(drawn[: settings.sentences]):
        start, end = spans[place]
        rest = f"{text[:start].rstrip()} {text[end:].lstrip()}".strip()
        if words_of(rest):
            left_in = draws[len(spans) + place] < settings.left_in
            yield Pair(text[start:end], text if left_in else rest)
