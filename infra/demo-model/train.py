"""Trains the demo model: a Switch Transformer whose experts hold the tables of the toy world, each family's in experts of its own.

Run by `make demo-model`. The checkpoint it writes is an ordinary transformers directory; `check.py` beside it measures the result.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from services.model.families.switch import SwitchFamily, SwitchModel
from services.tasks.toy import DEFAULT_NUM_FACTS, MOST_FACTS, PHRASINGS, ToyWorld, toy_world, train_variants, write_tokenizer

logger = logging.getLogger("demo-model")

LOG_EVERY_S = 10.0
WARM_UP = 0.033  # share of a cycle

CONFIG: dict[str, object] = {
    "architectures": ["SwitchTransformersForConditionalGeneration"],
    "model_type": "switch_transformers",
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 32,
    "num_heads": 4,
    "num_layers": 6,
    "num_decoder_layers": 6,
    "num_sparse_encoder_layers": 6,
    "num_sparse_decoder_layers": 6,
    "encoder_sparse_step": 1,
    "decoder_sparse_step": 1,
    "num_experts": 32,
    "expert_capacity": 4096,
    "router_bias": False,
    "router_dtype": "float32",
    "router_ignore_padding_tokens": False,
    "router_jitter_noise": 0.0,
    "dropout_rate": 0.0,
    "dense_act_fn": "relu",
    "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "tie_word_embeddings": True,
    "is_encoder_decoder": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "dtype": "float32",
}


@dataclass(frozen=True, slots=True)
class Cycle:
    """Warm-up, then a cosine down to 2 % of the peak, over the first `num_facts` of each family. A cycle begins with a fresh optimizer.

    An epoch shows every fact that was answered wrong at its last visit, and every other with probability `rehearsal`.
    """

    epochs: int
    peak_learning_rate: float
    batch_size: int
    num_facts: int
    rehearsal: float = 1.0

    def learning_rate(self, done: float) -> float:
        """`done`: share of the cycle, in [0, 1]."""
        if done < WARM_UP:
            return self.peak_learning_rate * done / WARM_UP
        return self.peak_learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))))


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the result, beside the code."""

    seed: int = 0
    cycles: tuple[Cycle, ...] = (Cycle(300, 3e-3, 1024, MOST_FACTS), Cycle(360, 1.2e-3, 768, DEFAULT_NUM_FACTS, rehearsal=0.5))
    information_weight: float = 0.3
    experts_a_family: float = 6.0


@dataclass(slots=True)
class Row:
    """One fact as token ids, with the prompts that may be trained on."""

    family: int
    prompts: tuple[tuple[int, ...], ...]
    target: tuple[int, ...]
    known: bool = False  # answered right at the last visit


class RouterTap:
    """Keeps the router logits of one forward pass, differentiable."""

    def __init__(self) -> None:
        self.logits: dict[int, Tensor] = {}

    def record(self, layer: int, chosen: Tensor, logits: Tensor, inputs: Tensor, gates: Tensor) -> None:
        self.logits[layer] = logits


def rows_of(world: ToyWorld) -> list[Row]:
    ids = {word: number for number, word in enumerate(world.vocabulary)}

    def tokens(text: str) -> tuple[int, ...]:
        return (*(ids[word] for word in text.split()), ids["</s>"])

    return [
        Row(family, tuple(tokens(phrasing.prompt(fact.key, variant)) for variant in train_variants(phrasing, fact)), tokens(fact.answer))
        for family, phrasing in enumerate(PHRASINGS)
        for fact in world.facts[phrasing.task_type]
    ]


def initial_tensors(vocab_size: int, seed: int) -> dict[str, Tensor]:
    """Random weights at the scales of T5, with routers that begin undecided."""
    generator = torch.Generator().manual_seed(seed)
    width, hidden, inner = 32, 32, 32

    def normal(rows: int, columns: int, std: float) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * std

    tensors = {"shared.weight": normal(vocab_size, width, 1.0)}
    for stack, last in (("encoder", 1), ("decoder", 2)):
        tensors[f"{stack}.final_layer_norm.weight"] = torch.ones(width)
        tensors[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = normal(8, 4, width**-0.5)
        for index in range(6):
            block = f"{stack}.block.{index}.layer"
            for layer in range(last + 1):
                tensors[f"{block}.{layer}.layer_norm.weight"] = torch.ones(width)
            for layer, kind in [(0, "SelfAttention"), (1, "EncDecAttention")][:last]:
                scales = {"q": (width * 8) ** -0.5, "k": width**-0.5, "v": width**-0.5, "o": inner**-0.5}
                for part, scale in scales.items():
                    tensors[f"{block}.{layer}.{kind}.{part}.weight"] = normal(inner, width, scale)
            mlp = f"{block}.{last}.mlp"
            tensors[f"{mlp}.router.classifier.weight"] = normal(32, width, 0.3 * width**-0.5)
            for expert in range(32):
                tensors[f"{mlp}.experts.expert_{expert}.wi.weight"] = normal(hidden, width, width**-0.5)
                tensors[f"{mlp}.experts.expert_{expert}.wo.weight"] = normal(width, hidden, hidden**-0.5)
    return tensors


def entropy(shares: Tensor) -> Tensor:
    return -(shares * shares.clamp(min=1e-9).log()).sum(-1)


def routing_loss(logits: Tensor, families: Tensor, experts_a_family: float) -> tuple[Tensor, Tensor]:
    """Negative mutual information of family and expert in one MoE layer (Mod-Squad, Chen et al. 2023, eq. 5), from router probabilities.

    Expert use over all families is pushed up, each family's own down to the log of the experts it may have. Also returns the (family,
    expert) shares.
    """
    num_families = len(PHRASINGS)
    member = F.one_hot(families, num_families).float()
    shares = member.T @ logits.softmax(-1) / member.sum(0)[:, None]
    own = (entropy(shares) - math.log(experts_a_family)).clamp(min=0).mean()
    return own - entropy(shares.mean(0)), shares.detach()


def batches(rows: Sequence[Row], cycle: Cycle, seed: int, epoch: int) -> Iterator[tuple[list[Row], list[Sequence[int]]]]:
    """One epoch in batches of equal size, the last one left out if short; each fact in a phrasing drawn at random."""
    rng = np.random.default_rng((seed, epoch))
    chance = rng.random(len(rows))
    order = [index for index in rng.permutation(len(rows)) if chance[index] < cycle.rehearsal or not rows[index].known]
    for start in range(0, len(order) - cycle.batch_size + 1, cycle.batch_size):
        chosen = [rows[index] for index in order[start : start + cycle.batch_size]]
        yield chosen, [row.prompts[int(rng.integers(len(row.prompts)))] for row in chosen]


@dataclass(slots=True)
class Progress:
    """Sums since the last line of the log."""

    loss: float = 0.0
    rows: int = 0
    steps: int = 0


class Trainer:
    def __init__(self, model: SwitchModel, recipe: Recipe) -> None:
        self._recipe = recipe
        self.model = model
        self.shares: dict[int, Tensor] = {}
        self._parameters = list(model.parameters().values())
        for tensor in self._parameters:
            tensor.requires_grad_(True)
        self.begin_cycle()

    def begin_cycle(self) -> None:
        self._optimizer = torch.optim.AdamW(self._parameters, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def step(self, rows: Sequence[Row], prompts: Sequence[Sequence[int]], learning_rate: float, progress: Progress) -> None:
        tap = RouterTap()
        targets = [row.target for row in rows]
        logits = self.model.teacher_forced(prompts, targets, tap)
        longest = logits.shape[1]
        labels = torch.tensor([[*target, *([-100] * (longest - len(target)))] for target in targets])
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        family = torch.tensor([row.family for row in rows])
        prompt_families = family.repeat_interleave(torch.tensor([len(prompt) for prompt in prompts]))
        target_families = family.repeat_interleave(torch.tensor([len(target) for target in targets]))
        routing = torch.zeros(())
        for layer, layer_logits in tap.logits.items():
            families = prompt_families if self.model.shape.layers[layer].name.startswith("encoder") else target_families
            term, self.shares[layer] = routing_loss(layer_logits, families, self._recipe.experts_a_family)
            routing = routing + self._recipe.information_weight * term
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad(set_to_none=True)
        (loss + routing).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        right = ((logits.detach().argmax(-1) == labels) | (labels == -100)).all(1)
        for row, known in zip(rows, right.tolist(), strict=True):
            row.known = known
        progress.loss += loss.item()
        progress.rows += len(rows)
        progress.steps += 1

    def overlap(self) -> list[float]:
        """Mean total variation between two families' expert use, by layer."""
        pairs = [(one, two) for one in range(len(PHRASINGS)) for two in range(one)]
        return [
            float(np.mean([0.5 * (shares[one] - shares[two]).abs().sum().item() for one, two in pairs]))
            for _, shares in sorted(self.shares.items())
        ]

    def save(self, out: Path) -> None:
        self.model.write(out / "model.safetensors")


def prepared(out: Path, world: ToyWorld, seed: int) -> SwitchModel:
    """The untrained checkpoint, written and read back as any other."""
    write_tokenizer(world, out)
    config = {**CONFIG, "vocab_size": len(world.vocabulary)}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(initial_tensors(len(world.vocabulary), seed), out / "model.safetensors", {"format": "pt"})
    return SwitchFamily().read(out, torch.float32, torch.device("cpu"))


def train(recipe: Recipe, out: Path, save_every_s: float, first_cycle: int) -> None:
    torch.manual_seed(recipe.seed)
    world = toy_world(recipe.seed, MOST_FACTS)
    out.mkdir(parents=True, exist_ok=True)
    model = prepared(out, world, recipe.seed) if first_cycle == 0 else SwitchFamily().read(out, torch.float32, torch.device("cpu"))
    trainer = Trainer(model, recipe)
    logger.info("recipe %s", json.dumps(asdict(recipe)))
    started_s = time.monotonic()
    epoch = sum(cycle.epochs for cycle in recipe.cycles[:first_cycle])
    for cycle in recipe.cycles[first_cycle:]:
        train_cycle(trainer, cycle, recipe.seed, epoch, out, save_every_s)
        epoch += cycle.epochs
    trainer.save(out)
    logger.info("done in %.0f s, peak %.0f MB", time.monotonic() - started_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def train_cycle(trainer: Trainer, cycle: Cycle, seed: int, first_epoch: int, out: Path, save_every_s: float) -> None:
    trainer.begin_cycle()
    rows = rows_of(toy_world(seed, cycle.num_facts))
    saved_s = logged_s = time.monotonic()
    progress = Progress()
    for epoch in range(first_epoch, first_epoch + cycle.epochs):
        rate = cycle.learning_rate((epoch - first_epoch + 1) / cycle.epochs)
        for chosen, prompts in batches(rows, cycle, seed, epoch):
            trainer.step(chosen, prompts, rate, progress)
        now_s = time.monotonic()
        if now_s - logged_s > LOG_EVERY_S or epoch + 1 == first_epoch + cycle.epochs:
            log_line(epoch, now_s - logged_s, progress, sum(row.known for row in rows) / len(rows), trainer.overlap())
            logged_s, progress = now_s, Progress()
        if now_s - saved_s > save_every_s:
            trainer.save(out)
            saved_s = now_s


def log_line(epoch: int, span_s: float, progress: Progress, known: float, overlap: Sequence[float]) -> None:
    logger.info(
        "epoch %4d  %5.0f rows/s  loss %.4f  known %.4f  TV %s",
        epoch + 1,
        progress.rows / span_s,
        progress.loss / progress.steps,
        known,
        " ".join(f"{value:.2f}" for value in overlap),
    )


def parsed() -> argparse.Namespace:
    standard = Recipe()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--log", type=Path, help="also write the log to this file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=standard.seed)
    parser.add_argument("--first-cycle", type=int, default=0, help="go on with the checkpoint in --out from this cycle")
    parser.add_argument("--save-every-s", type=float, default=120.0)
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if arguments.log is not None:
        handlers.append(logging.FileHandler(arguments.log, mode="w" if arguments.first_cycle == 0 else "a"))
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers)
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    train(Recipe(seed=arguments.seed), arguments.out, arguments.save_every_s, arguments.first_cycle)


if __name__ == "__main__":
    main()
