"""Peak memory of a merge: does it grow with the model?  python -m tests.benchmarks.bench_merge

A synthetic bf16 model of 7B's widths and an adapter on all its matrices go through toolkit.export:
a small one, a large one in several files, the same in one file. Then all weights of one as a
checkpoint in fp32. Needs three times the model's size on the disk, and removes what it made.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from tests.benchmarks.harness import ROOT, Contender, machine, run_once
from toolkit import export
from toolkit.base.files import read_json, write_json
from toolkit.model.tensor_file import StoredTensors, TensorWriter
from toolkit.model.weights import adapter_config, merge_weights
from toolkit.settings.model_schema import Lora

TINY = ROOT / "toolkit" / "quickstart" / "tiny-mistral"
LORA = Lora(rank=16, alpha=32, dropout=0.0, targets=("q_proj", "up_proj"))


def shapes_of(megabytes: int, *, width: int) -> dict[str, tuple[int, int]]:
    """A decoder's matrices, of about so many MB in bf16: an embedding, and layers of 4.5 w x w."""
    shapes = {"model.embed_tokens.weight": (8 * width, width)}
    layers = max(1, round((megabytes * 2**20 / 2 / width**2 - 8) / 4.5))
    for layer in range(layers):
        shapes[f"model.layers.{layer}.self_attn.q_proj.weight"] = (width, width)
        shapes[f"model.layers.{layer}.mlp.up_proj.weight"] = (7 * width // 2, width)
    return shapes


def write(path: Path, shapes: dict[str, tuple[int, int]], *, dtype: torch.dtype) -> None:
    """Random tensors; those of a shape are one."""
    torch.manual_seed(0)
    values = {shape: torch.randn(shape).to(dtype) for shape in sorted(set(shapes.values()))}
    writer = TensorWriter(path, shapes=shapes, dtype=dtype)
    for name, shape in shapes.items():
        writer.put(name, values[shape])
    writer.close()


def make_model(folder: Path, *, megabytes: int, files: int, width: int) -> Path:
    """A model folder of so many files, with a configuration and a tokenizer."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / name, folder / name)
    config = read_json(TINY / "config.json")
    write_json(folder / "config.json", {**config, "hidden_size": width})
    shapes = shapes_of(megabytes, width=width)
    names, index = list(shapes), {}
    for number in range(files):
        part = names[number * len(names) // files : (number + 1) * len(names) // files]
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        file = "model.safetensors" if files == 1 else file
        write(folder / file, {name: shapes[name] for name in part}, dtype=torch.bfloat16)
        index |= dict.fromkeys(part, file)
    if files > 1:
        write_json(folder / "model.safetensors.index.json", {"weight_map": index})
    return folder


def make_adapter(folder: Path, *, megabytes: int, width: int) -> Path:
    """An adapter on every matrix of the layers."""
    folder.mkdir(parents=True)
    write_json(folder / "adapter_config.json", adapter_config(LORA, base="anything"))
    shapes = {}
    for name, (rows, columns) in shapes_of(megabytes, width=width).items():
        if "layers" in name:
            stem = f"base_model.{name.removesuffix('.weight')}"
            shapes[f"{stem}.lora_A.weight"] = (LORA.rank, columns)
            shapes[f"{stem}.lora_B.weight"] = (rows, LORA.rank)
    write(folder / "adapter_model.safetensors", shapes, dtype=torch.float32)
    return folder


def make_checkpoint(path: Path, *, megabytes: int, width: int) -> Path:
    """All weights in fp32, in one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, shapes_of(megabytes, width=width), dtype=torch.float32)
    return path


def merge(base: Path, trained: Path, out: Path) -> float:
    """Export with an adapter's folder, or merge a file of all weights; returns the peak of this
    process so far, in MiB."""
    if trained.is_dir():
        assert export.main([str(base), str(out), "--adapters", str(trained)]) == 0
    else:
        out.mkdir()
        merge_weights(base, replaced=StoredTensors([trained]), dtype="bf16", out=out)
    shutil.rmtree(out)
    # Not getrusage: its figure begins with what the process had from which this one was started.
    (line,) = [li for li in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in li]
    return int(line.split()[1]) / 1024


def bench(place: Path, *, megabytes: int, width: int) -> dict[str, float]:
    """Peaks in MiB: each a process of its own, and only its files on the disk."""
    cases = [(megabytes // 8, 1, True), (megabytes, 5, True), (megabytes, 1, True)]
    cases += [(megabytes // 16, 1, False), (megabytes // 2, 1, False)]
    found = {}
    for size, files, lora in cases:
        base = make_model(place / "base", megabytes=size, files=files, width=width)
        make = make_adapter if lora else make_checkpoint
        trained = make(place / "trained", megabytes=size, width=width)
        command = [sys.executable, "-m", "tests.benchmarks.bench_merge", "--child"]
        what = "LoRA" if lora else f"all weights, {2 * size} MB of fp32"
        name = f"{what}, {size} MB in {files} file{'s' if files > 1 else ''}"
        run = run_once(Contender(name, [*command, str(base), str(trained), str(place / "out")]))
        found[name] = run.said["peaks_mib"][0]
        shutil.rmtree(place)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=8192, help="of the large model")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--child", nargs="+", type=Path, help="BASE TRAINED OUT, several times")
    arguments = parser.parse_args()
    if arguments.child:
        triples = [arguments.child[at : at + 3] for at in range(0, len(arguments.child), 3)]
        print(json.dumps({"peaks_mib": [merge(*triple) for triple in triples]}))
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "models"
        found = bench(place, megabytes=arguments.megabytes, width=arguments.width)
    print(machine())
    print("| a merge | peak memory |\n|---|---|")
    for name, peak in found.items():
        print(f"| {name} | {peak:,.0f} MiB |")


if __name__ == "__main__":
    main()
