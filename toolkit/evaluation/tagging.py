"""Tasks on words, with the protocol of all other tasks: an encoder in, scores out.

Knows where the data of a task (`words`) and its scores (`word_scores`) come from.
"""

import dataclasses
from collections import Counter
from pathlib import Path

from toolkit.base.console import warn
from toolkit.evaluation.task import Embed, EmbedTokens
from toolkit.evaluation.words import WordData, read_word_data
from toolkit.settings.task_schema import WordTask


@dataclasses.dataclass(frozen=True)
class TaggingTask:
    """Accuracy and F1 of a linear layer on an encoder's frozen word vectors, by `word_scores`. The
    layers of each encoder are written into `folder`/<encoder>/<name>."""

    name: str
    asked: WordTask
    data: WordData
    folder: Path

    @property
    def main(self) -> str:
        """The name of the main score: the accuracy of words, which the paper reports."""
        return "accuracy, shifted" if self.asked.shift is True else "accuracy"

    def scores(self, embed: Embed) -> dict[str, float]:
        """The scores of `word_scores`, from 0 to 1."""
        from toolkit.evaluation.word_scores import word_scores  # here: it imports torch

        assert isinstance(embed, EmbedTokens), "training's probe has no tasks on words"
        folder = self.folder / embed.name
        return word_scores(embed.encoder, self.asked, data=self.data, name=self.name, folder=folder)


def read_tagging(name: str, asked: WordTask, *, folder: Path) -> TaggingTask:
    """Read a task from its files (`read_word_data`). Test words whose tag does not occur in
    training are counted in a warning, and count as wrong."""
    data = read_word_data(asked)
    known = set(data.train.all_tags)
    unseen = Counter(tag for tag in data.test.all_tags if tag not in known)
    if unseen:
        shown = ", ".join(f"{tag!r} ({count})" for tag, count in unseen.most_common(5))
        warn(
            f"{name}: {unseen.total()} of {len(data.test.all_tags)} words of "
            f"{data.test.name} have a tag that {data.train.name} does not have, such as {shown}; "
            "each counts as wrong"
        )
    return TaggingTask(name, asked, data, folder)
