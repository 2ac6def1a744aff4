"""The choice among merges: worked out by hand, then through the door, the report and a model's
reference; and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import QUICKSTART, refused
from toolkit import evaluate, export, launch, verify
from toolkit.base.files import is_committed, read_json
from toolkit.encoding.encoder import Encoder
from toolkit.evaluation.forgetting import choose
from toolkit.evaluation.parts import main_scores
from toolkit.report import main as report
from toolkit.settings.merge_schema import Forgetting
from toolkit.settings.model_source import resolve_model

RATIOS = {"a": 0.0, "b": 0.25, "c": 0.5, "d": 0.75, "e": 1.0}


def asked_of(**changes: object) -> Forgetting:
    content = {"general": ["g", "h"], "domain": ["x"], "ratios": RATIOS, **changes}
    return Forgetting.model_validate_json(json.dumps(content))


def scores_of(general: list[float], domain: list[float]) -> dict[str, dict[str, float]]:
    """Two general tasks, whose mean is the one that is given."""
    return {
        name: {"g": one + 0.1, "h": one - 0.1, "x": other, "unasked": 9.0}
        for name, one, other in zip(RATIOS, general, domain, strict=True)
    }


@pytest.mark.parametrize(
    ("general", "domain", "tolerance", "expected"),
    [
        # The best of the domain forgets too much.
        ([0.80, 0.80, 0.795, 0.78, 0.5], [0.3, 0.4, 0.5, 0.6, 0.7], 0.01, "c"),
        ([0.80, 0.80, 0.795, 0.78, 0.5], [0.3, 0.4, 0.5, 0.6, 0.7], 0.02, "d"),
        ([0.80, 0.80, 0.795, 0.78, 0.5], [0.3, 0.4, 0.5, 0.6, 0.7], 1.0, "e"),
        # A drop of the tolerance itself is allowed, whatever rounding makes of it.
        ([0.80, 0.79, 0.78, 0.77, 0.76], [0.3, 0.4, 0.5, 0.6, 0.7], 0.01, "b"),
        # Nothing is gained, or all that gains forgets: the general encoder stays.
        ([0.80, 0.80, 0.80, 0.80, 0.80], [0.3, 0.3, 0.2, 0.3, 0.1], 0.01, "a"),
        ([0.80, 0.70, 0.70, 0.70, 0.70], [0.3, 0.4, 0.5, 0.6, 0.7], 0.01, "a"),
        # Of equal ones the smaller ratio; better general scores alone do not count.
        ([0.80, 0.80, 0.90, 0.80, 0.80], [0.3, 0.5, 0.5, 0.4, 0.5], 0.01, "b"),
    ],
)
def test_choices_worked_out_by_hand(
    general: list[float], domain: list[float], tolerance: float, expected: str
) -> None:
    choice = choose(scores_of(general, domain), asked=asked_of(tolerance=tolerance))
    assert choice.chosen.encoder == expected
    assert [row.encoder for row in choice.rows] == list(RATIOS)
    assert [row.general for row in choice.rows] == pytest.approx(general)
    assert [row.domain for row in choice.rows] == pytest.approx(domain)
    allowed = [one >= general[0] - tolerance - 1e-9 for one in general]
    assert [row.is_allowed for row in choice.rows] == allowed


def test_the_order_of_encoders_says_nothing() -> None:
    scores = scores_of([0.8, 0.8, 0.8, 0.8, 0.5], [0.3, 0.4, 0.5, 0.5, 0.7])
    turned = asked_of(ratios=dict(reversed(RATIOS.items())))
    assert choose(scores, asked=turned) == choose(scores, asked=asked_of())


# --- through the door ---


@pytest.fixture
def recipe(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """A recipe that scores two encoders, and chooses one."""

    def make(**changes: object) -> Path:
        encoders = {
            "general": {"model": str(tiny_model), "max_tokens": 32},
            "merged": {"model": str(tiny_model), "max_tokens": 32, "causal": True},
        }
        parts = ("dev", "test")
        content: dict[str, Any] = {
            "kind": "evaluate",
            "output_dir": str(tmp_path / "scores"),
            "encoders": encoders,
            "sts": {part: str(QUICKSTART / f"sts_{part}.tsv") for part in parts},
            "forgetting": {
                "general": ["dev"],
                "domain": ["test"],
                "ratios": {"general": 0, "merged": 1},
                "tolerance": 1.0,
            },
        }
        content["forgetting"] |= changes
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(content))
        return path

    return make


def test_an_evaluation_chooses_and_stands_for_its_choice(
    recipe: Callable[..., Path],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "scores"
    assert evaluate.main([str(recipe())]) == 0
    printed = capsys.readouterr().out
    scores, chosen = read_json(out / "scores.json"), read_json(out / "chosen.json")
    dev, test = main_scores(out)
    assert [row["encoder"] for row in chosen["rows"]] == ["general", "merged"]
    for row in chosen["rows"]:
        mine = scores[row["encoder"]]
        assert (row["general"], row["domain"]) == (mine[dev], mine[test])
        assert row["scores"] == {"dev": mine[dev], "test": mine[test]}
    best = max(chosen["rows"], key=lambda row: row["domain"])
    assert chosen["encoder"] == best["encoder"]
    assert chosen["model"] == str(tiny_model)
    part = read_json(out / "parts" / best["encoder"] / "dev.json")
    assert chosen["digest"] == part["facts"]["encoder"]["model"]
    assert f"chosen: {best['encoder']}, ratio {best['ratio']:g}: domain" in printed
    assert verify.main([str(out)]) == 0
    # OUT is a model: the one that was chosen.
    assert resolve_model(str(out)).folder == tiny_model
    assert Encoder.from_pretrained(out).encode(["a bridge"]).any()
    assert export.main([str(out), str(tmp_path / "exported")]) == 0
    assert is_committed(tmp_path / "exported")
    # And it has a curve.
    assert report([str(out)]) == 0
    page = (out / "report" / "index.html").read_text()
    assert "scores: forgetting" in page
    assert f"<td>{best['domain']:.4f}</td><td>yes</td><td>chosen</td>" in page
    (picture,) = (out / "report").glob("*-forgetting.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general": ["dve"]}, "forgetting.general: no task 'dve'; there are dev, test; did you"),
        ({"domain": []}, "key 'forgetting.domain': tuple should have at least 1 item"),
        ({"domain": ["dev"]}, "forgetting: 'dev' is a general task and one of the domain"),
        (
            {"ratios": {"general": 0, "mergde": 1}},
            "forgetting.ratios: no encoder 'mergde'; there are general, merged; did you mean",
        ),
        ({"ratios": {"general": 0.5, "merged": 1}}, "0 encoders have the ratio 0; exactly one is"),
        ({"ratios": {"general": 0, "merged": 0}}, "2 encoders have the ratio 0; exactly one is"),
        ({"ratios": {"general": 0, "merged": 1.5}}, "less than or equal to 1, not 1.5"),
        ({"ratios": {"general": 0}}, "should have at least 2 items"),
        ({"tolerance": -0.1}, "greater than or equal to 0, not -0.1"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(
    changes: dict[str, object],
    message: str,
    recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the door and by the launcher, before anything is scored."""
    path = recipe(**changes)
    assert message in refused(capsys, evaluate.main, path)
    assert message in refused(capsys, launch.main, path, "--cluster", "local")
    assert not (tmp_path / "scores").exists()


def test_an_encoder_with_adapters_is_no_choice(
    recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, evaluate.main, recipe(), f"encoders.merged.adapters=[{tmp_path}]")
    assert "'merged' has adapters, and a choice names one model; export it" in line


@pytest.mark.parametrize("content", ["{}", "[]", '{"model": 3}', "{"])
def test_a_choice_that_is_damaged_is_no_model(content: str, tmp_path: Path) -> None:
    (tmp_path / "chosen.json").write_text(content)
    with pytest.raises(ValueError, match=r"chosen\.json: is (damaged or not ours|not valid JSON)"):
        resolve_model(str(tmp_path))


def test_a_choice_of_a_choice_is_refused(tmp_path: Path) -> None:
    """It may be of itself."""
    (tmp_path / "chosen.json").write_text(json.dumps({"model": str(tmp_path)}))
    with pytest.raises(ValueError, match="another choice; run the evaluation again"):
        resolve_model(str(tmp_path))
