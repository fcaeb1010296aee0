"""Makes a checkpoint that moedge reads out of one whose weights are pickles: safetensors beside the same config and tokenizer.

Pickles are opened in a process of their own, by nothing but torch's restricted unpickler (`unpickling.py`). The folder appears whole or
not at all.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.model.errors import CheckpointError
from services.model.families.tensors import read_json
from services.model.unpickling import ALL, TIED_ONCE

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_BESIDE = ("*.json", "*.model", "*.txt")  # config and tokenizer

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Imported:
    directory: Path
    num_files: int
    num_tensors: int
    num_bytes: int


def import_checkpoint(source: Path, out: Path, tell: Tell) -> Imported:
    """`source`: a checkpoint directory, or its one `.bin` file. `out` must not be there yet. CheckpointError says what is wrong."""
    directory = source if source.is_dir() else source.parent
    if not source.exists():
        raise CheckpointError(f"{source}: is not there; give a checkpoint directory or its .bin file")
    if out.exists():
        raise CheckpointError(f"{out}: is there already; give a new folder")
    config = read_json(directory / "config.json")
    pickles = [source] if source.is_file() else _pickles(directory)
    kept = ALL if config.get("tie_word_embeddings") is False else TIED_ONCE
    out.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        file_of = _converted(pickles, staged, kept, tell)
        for pattern in _BESIDE:
            for path in directory.glob(pattern):
                if not path.name.endswith(".index.json"):
                    shutil.copyfile(path, staged / path.name)
        staged.rename(out)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return Imported(out, len(pickles), len(file_of), sum(path.stat().st_size for path in out.glob("*.safetensors")))


def _pickles(directory: Path) -> list[Path]:
    if (directory / INDEX).is_file():
        weight_map = read_json(directory / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{directory / INDEX}: field 'weight_map' is missing; copy it again")
        names = sorted({str(name) for name in weight_map.values()})
        if any(Path(name).name != name for name in names):
            raise CheckpointError(f"{directory / INDEX}: names a file outside its folder; it is not read")
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise CheckpointError(f"{directory}: {missing[0]} is named in {INDEX} but missing; copy it too")
        return [directory / name for name in names]
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    hint = "its weights are safetensors already; use it as it is" if any(directory.glob("*.safetensors")) else f"there is no {SINGLE} in it"
    raise CheckpointError(f"{directory}: {hint}")


def _converted(pickles: list[Path], staged: Path, kept: str, tell: Tell) -> dict[str, str]:
    """File of each tensor; an index stands beside several files."""
    names = ["model.safetensors"]
    if len(pickles) > 1:
        names = [f"model-{n + 1:05d}-of-{len(pickles):05d}.safetensors" for n in range(len(pickles))]
    file_of: dict[str, str] = {}
    for pickled, name in zip(pickles, names, strict=True):
        tell(f"{pickled.name} to {name}")
        file_of |= dict.fromkeys(_convert_apart(pickled, staged / name, kept), name)
    if len(names) > 1:
        _write_index(staged, file_of)
    return file_of


def _convert_apart(source: Path, target: Path, kept: str) -> list[str]:
    command = [sys.executable, "-m", "services.model.unpickling", str(source), str(target), kept]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        raise CheckpointError(f"{source}: the process that opened it was ended by {name}; is there memory for the file?")
    if ended.returncode:
        reason = ended.stderr.strip().splitlines()
        raise CheckpointError(f"{source}: {reason[-1] if reason else 'cannot be opened'}")
    return ended.stdout.splitlines()


def _write_index(staged: Path, file_of: Mapping[str, str]) -> None:
    told = {"metadata": {}, "weight_map": dict(sorted(file_of.items()))}
    (staged / "model.safetensors.index.json").write_text(json.dumps(told, indent=2), encoding="utf-8")
