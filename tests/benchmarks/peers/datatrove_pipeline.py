"""A dump cleaned and tokenised with datatrove: DUMP OUT TOKENIZER WORKERS.

datatrove reads no dumps: its first step is given our reader's pages, each task a share of them.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import mwparserfromhell
from datatrove.data import Document, DocumentsPipeline
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import ParquetWriter
from loguru import logger

from toolkit.text.dump import Dump, read_page
from toolkit.text.wikitext import is_redirect


class Articles(PipelineStep):
    name = "articles"
    type = "read"

    def __init__(self, dump: str) -> None:
        super().__init__()
        self.dump = dump

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[object]:
        opened = Dump(Path(self.dump))
        for number, xml in enumerate(opened.pages(0)):
            if number % world_size != rank:
                continue
            page = read_page(xml, site=opened.site)
            if page.is_redirect or is_redirect(page.wikitext):
                continue
            if text := mwparserfromhell.parse(page.wikitext).strip_code():
                yield Document(text=text, id=page.id, metadata={"title": page.title})


def main(dump: str, out: str, tokenizer: str, workers: str) -> None:
    logger.remove()
    LocalPipelineExecutor(
        pipeline=[
            Articles(dump),
            ParquetWriter(f"{out}/text"),
            DocumentTokenizer(
                f"{out}/tokens", tokenizer_name_or_path=tokenizer, shuffle_documents=False
            ),
        ],
        tasks=int(workers),
        workers=int(workers),
        logging_dir=f"{out}/logs",
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
