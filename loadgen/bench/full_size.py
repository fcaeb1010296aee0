"""A Switch Transformers checkpoint of a real size with random weights, written a tensor at a time: the same seed, the same bytes.

It answers nothing; what it weighs and how long merging takes are real.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from loadgen.bench.sizes import NUM_BUCKETS, Sizes
from services.model.tensor_files import raw_bytes, safetensors_header, whole_file, write_atomically

INDEX = "model.safetensors.index.json"  # written last: where it is, the checkpoint is whole

Shape = tuple[int, ...]
Tell = Callable[[str], None]


def num_params(sizes: Sizes) -> int:
    return sum(math.prod(shape) for shapes in _shards(sizes).values() for shape in shapes.values())


def write_checkpoint(directory: Path, sizes: Sizes, seed: int, tokenizer_dir: Path, tell: Tell) -> None:
    """A directory that transformers and moedge read, float32. One that is there already for these sizes is left as it is."""
    config = json.dumps({**sizes.config(), "seed": seed}, indent=2).encode()
    if (directory / INDEX).exists() and (directory / "config.json").read_bytes() == config:
        return
    (directory / INDEX).unlink(missing_ok=True)
    write_atomically(directory / "config.json", config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_dir / name, directory / name)
    generator = torch.Generator().manual_seed(seed)
    shards = _shards(sizes)
    for number, (shard, shapes) in enumerate(shards.items()):
        tell(f"checkpoint: part {number + 1} of {len(shards)}")
        with whole_file(directory / shard) as file:
            file.write(safetensors_header({name: (torch.float32, shape) for name, shape in shapes.items()}))
            for name, shape in shapes.items():
                file.write(raw_bytes(_drawn(name, shape, generator)))
    weight_map = {name: shard for shard, shapes in shards.items() for name in shapes}
    write_atomically(directory / INDEX, json.dumps({"metadata": {}, "weight_map": weight_map}).encode())


def _drawn(name: str, shape: Shape, generator: torch.Generator) -> Tensor:
    if "layer_norm" in name:
        return torch.ones(shape)
    return torch.empty(shape).normal_(std=shape[-1] ** -0.5, generator=generator)


def _shards(sizes: Sizes) -> dict[str, dict[str, Shape]]:
    """Names and shapes by file, one file a block."""
    files: dict[str, dict[str, Shape]] = {"shared": {"shared.weight": (sizes.vocab_size, sizes.d_model)}}
    for stack in ("encoder", "decoder"):
        files["shared"][f"{stack}.final_layer_norm.weight"] = (sizes.d_model,)
        for number in range(sizes.num_blocks):
            files[f"{stack}.{number}"] = dict(_block(sizes, stack, number))
    return {f"model-{n + 1:05d}-of-{len(files):05d}.safetensors": shapes for n, shapes in enumerate(files.values())}


def _block(sizes: Sizes, stack: str, number: int) -> Iterator[tuple[str, Shape]]:
    prefix, inner = f"{stack}.block.{number}.layer", sizes.inner
    kinds = ("SelfAttention",) if stack == "encoder" else ("SelfAttention", "EncDecAttention")
    for place, kind in enumerate(kinds):
        yield f"{prefix}.{place}.layer_norm.weight", (sizes.d_model,)
        for part in "qkv":
            yield f"{prefix}.{place}.{kind}.{part}.weight", (inner, sizes.d_model)
        yield f"{prefix}.{place}.{kind}.o.weight", (sizes.d_model, inner)
    if number == 0:
        yield f"{prefix}.0.SelfAttention.relative_attention_bias.weight", (NUM_BUCKETS, sizes.num_heads)
    mlp = f"{prefix}.{len(kinds)}.mlp"
    yield f"{prefix}.{len(kinds)}.layer_norm.weight", (sizes.d_model,)
    if number % 2 == 0:
        yield from _feed_forward(mlp, sizes)
        return
    yield f"{mlp}.router.classifier.weight", (sizes.num_experts, sizes.d_model)
    for expert in range(sizes.num_experts):
        yield from _feed_forward(f"{mlp}.experts.expert_{expert}", sizes)


def _feed_forward(prefix: str, sizes: Sizes) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}.wi.weight", (sizes.d_ff, sizes.d_model)
    yield f"{prefix}.wo.weight", (sizes.d_model, sizes.d_ff)
