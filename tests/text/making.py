"""Shards of given documents, made the way everybody makes them: from a file, part by part."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toolkit.cluster.crew import InProcess
from toolkit.text.assembly import finish
from toolkit.text.records import Article
from toolkit.text.sharding import Work, make_parts
from toolkit.text.shards import ShardRules
from toolkit.text.sources import find_inputs


def lines_of(articles: Sequence[Article]) -> str:
    return "".join(json.dumps(asdict(article)) + "\n" for article in articles)


def shard(path: Path, *, output: Path, max_bad_fraction: float = 0.0, **settings: Any) -> Path:
    """Shards of a file or folder."""
    work = Work(output=output, inputs=find_inputs([path]), **settings)
    make_parts(work, executor=InProcess(), width=1)
    finish(work, max_bad_fraction=max_bad_fraction)
    return output


def shard_articles(
    articles: Sequence[Article], *, output: Path, rows_per_shard: int = 10_000, **settings: Any
) -> Path:
    """Shards of these documents; their file is made beside the output."""
    output.parent.mkdir(parents=True, exist_ok=True)
    path = output.with_name("documents.jsonl")
    path.write_text(lines_of(articles), encoding="utf-8")
    rules = ShardRules(rows_per_shard=rows_per_shard)
    return shard(path, output=output, **{"rules": rules, **settings})
