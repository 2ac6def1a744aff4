"""A static table as the teacher of supervised training:

    python data_scripts/list_texts.py supervised_smollm2_135m data.train=PAIRS --output TEXTS.jsonl
    python -m tests.benchmarks.real.teacher TEXTS.jsonl OUT --table TABLE.safetensors

TABLE is WordLlama's (see `peers`). OUT is an encoding, as toolkit.encode would write it; the table
is no model that the toolkit encodes with.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.harness import REAL_DATA
from tests.benchmarks.real.peers import VOCABULARY, WordLlama
from tests.training.teachers import write_teacher
from toolkit.base.console import say


def main(argv: Sequence[str] | None = None) -> None:
    """Write the teacher, and say how many texts it has."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=REAL_DATA)
    given = parser.parse_args(argv)
    lines = given.texts.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    embed = WordLlama(given.table, vocabulary=given.data / VOCABULARY)
    write_teacher(texts, out=given.out, embed=embed, model=given.table.name)
    say(f"{given.out}: {len(texts):,} texts")


if __name__ == "__main__":
    main()
