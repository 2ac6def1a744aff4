"""What became of each document between two directories of shards."""

import json
from pathlib import Path

import pytest

from data_scripts import compare_shards
from tests.text.making import shard_articles
from toolkit.text.records import Article


def shards_of(folder: Path, texts: dict[str, str]) -> Path:
    articles = [
        Article(name, f"Title of {name}", url="", text=text) for name, text in texts.items()
    ]
    return shard_articles(articles, output=folder / "shards", rows_per_shard=2)


def test_documents_are_new_changed_or_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {"a": "The first text.", "b": "The second.", "c": "A third one.", "d": "The fourth."}
    now = {"d": "The fourth.", "x": "The second.", "a": "The first text!", "c": "A third one."}
    old, new = shards_of(tmp_path / "old", before), shards_of(tmp_path / "new", now)
    out = tmp_path / "changes.jsonl"
    assert compare_shards.main([str(old), str(new), "--output", str(out)]) == 0
    assert f"{new} beside {old}: 2 same, 1 new, 1 changed, 1 gone" in capsys.readouterr().out
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    changes = {"x": "new", "a": "changed", "b": "gone"}
    assert found == [{"id": name, "change": change} for name, change in changes.items()]
    assert compare_shards.main([str(old), str(new), "--output", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert compare_shards.main([str(new), str(new)]) == 0
    assert "4 same, 0 new, 0 changed, 0 gone" in capsys.readouterr().out
    assert compare_shards.main([str(new), str(tmp_path)]) == 2
