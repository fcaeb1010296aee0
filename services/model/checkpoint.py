"""Opens a base model: a Hugging Face directory or hub id, checked before a tensor is read. Safetensors only; pickles are refused."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import blake3
from torch import Tensor

from services.model.device import pick_device
from services.model.errors import CheckpointError
from services.model.families import family_of
from services.model.families.base import MoeModel
from services.model.families.tensors import read_json
from services.model.mapped_experts import MappedExperts
from services.model.memory import dtype_of, unique_bytes
from services.model.tensor_files import file_header_problem, non_finite
from services.model.tokenizer import Tokenizer

MAX_HEADER_BYTES = 16 << 20
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "tokenizer.json", "tokenizer_config.json"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class BaseModel:
    """An unmerged model with what it was read from. `base_id` names its content: weights, config and tokenizer."""

    model: MoeModel
    tokenizer: Tokenizer
    base_id: str
    directory: Path
    dtype: str
    full_bytes: int

    @property
    def config_json(self) -> str:
        return (self.directory / "config.json").read_text(encoding="utf-8")


def read_base(
    source: str | Path, dtype: str = "float32", device: str = "cpu", max_prompt_tokens: int | None = None, cache_dir: Path | None = None
) -> BaseModel:
    """Read a checkpoint directory or hub id, every weight cast to `dtype`.

    With `cache_dir`, experts are kept there once more, below the model's id, and mapped into memory instead of held (on a CPU).
    """
    torch_dtype, torch_device = dtype_of(dtype), pick_device(device)
    directory = _directory_of(source)
    family = family_of(read_json(directory / "config.json"))
    tokenizer = Tokenizer(directory, max_prompt_tokens)
    weight_files = _weight_files(directory)
    base_id = _content_id([*weight_files, directory / "config.json", directory / "tokenizer.json"])
    experts_dir = None if cache_dir is None else cache_dir / base_id / f"experts-{dtype}"
    model = family.read(directory, torch_dtype, torch_device, experts_dir)
    broken = non_finite(_held(model))
    if broken is not None:
        raise CheckpointError(f"{directory}: tensor {broken!r} holds NaN or infinity in {dtype}; use a checkpoint that was saved whole")
    return BaseModel(model, tokenizer, base_id, directory, dtype, unique_bytes(model))


def _directory_of(source: str | Path) -> Path:
    directory = Path(source).expanduser()
    if directory.is_dir():
        return directory
    if directory.exists():
        raise CheckpointError(f"{source}: is a file; give the checkpoint directory that holds config.json")
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
        raise CheckpointError(f"{source}: no such directory; give a checkpoint directory or a hub id such as google/switch-base-32")
    return _from_hub(source)


def _from_hub(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=HUB_FILES))
    except (OSError, HfHubHTTPError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{hub_id}: neither a directory nor a hub id that can be fetched ({reason})") from error


def _weight_files(directory: Path) -> list[Path]:
    """The safetensors files, their headers checked; whether they are complete is the family's to say."""
    paths = sorted(directory.glob("*.safetensors"))
    for path in paths:
        problem = file_header_problem(path, MAX_HEADER_BYTES)
        if problem is not None:
            cure = "pickles are never read, and a damaged file must be copied again; save with safe_serialization=True"
            raise CheckpointError(f"{path}: {problem}; {cure}")
    return paths


def _held(model: MoeModel) -> dict[str, Tensor]:
    """Parameters but those in mapped files, which were checked when these were written."""
    mapped = {id(weight) for stack in model.experts if isinstance(stack, MappedExperts) for weight in stack.weights.values()}
    return {name: tensor for name, tensor in model.parameters().items() if id(tensor) not in mapped}


def _content_id(paths: list[Path]) -> str:
    digest = blake3.blake3(max_threads=blake3.blake3.AUTO)
    for path in paths:
        digest.update(path.name.encode()).update(path.stat().st_size.to_bytes(8, "little"))
        digest.update_mmap(path)
    return digest.hexdigest(length=8)
