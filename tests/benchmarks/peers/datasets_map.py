"""A dump cleaned and tokenised with Hugging Face's `datasets`: DUMP OUT TOKENIZER WORKERS.

The library reads no dumps: its generator is given our reader's pages.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import mwparserfromhell
from tokenizers import Tokenizer

from toolkit.text.dump import Dump, read_page
from toolkit.text.wikitext import is_redirect

datasets.disable_progress_bars()


def articles(dump: str) -> Iterator[dict[str, str]]:
    opened = Dump(Path(dump))
    for xml in opened.pages(0):
        page = read_page(xml, site=opened.site)
        if not (page.is_redirect or is_redirect(page.wikitext)):
            yield {"id": page.id, "title": page.title, "text": page.wikitext}


def main(dump: str, out: str, tokenizer: str, workers: str) -> None:
    rows = datasets.Dataset.from_generator(
        articles, gen_kwargs={"dump": dump}, cache_dir=f"{out}/cache"
    )
    loaded = Tokenizer.from_file(tokenizer)

    def clean_and_tokenise(batch: dict[str, list[str]]) -> dict[str, list[object]]:
        texts = [mwparserfromhell.parse(text).strip_code() for text in batch["text"]]
        tokens = [found.ids for found in loaded.encode_batch(texts)]
        return {"id": batch["id"], "title": batch["title"], "text": texts, "tokens": tokens}

    done = rows.map(
        clean_and_tokenise,
        batched=True,
        batch_size=50,
        num_proc=int(workers),
        load_from_cache_file=False,
        new_fingerprint="cleaned",
    )
    done.save_to_disk(f"{out}/saved")
    print(f'{{"documents": {len(done)}}}')


if __name__ == "__main__":
    main(*sys.argv[1:])
