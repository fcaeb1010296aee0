"""A random-weight pico Switch checkpoint with a word tokenizer, and task items it can read. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

from services.tasks.values import TaskItem, TaskSet

NUM_WORDS = 60
MODEL_MAX_LENGTH = 24


def write_pico_checkpoint(directory: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides) -> Path:
    """2 encoder and 2 decoder blocks, all sparse: 4 MoE layers x 8 experts, d_model 32, d_ff 48."""
    torch.manual_seed(seed)
    settings = dict(
        vocab_size=NUM_WORDS + 3, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4, num_experts=8,
        num_sparse_encoder_layers=2, num_sparse_decoder_layers=2, expert_capacity=4096, dropout_rate=0.0, router_jitter_noise=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = SwitchTransformersForConditionalGeneration(SwitchTransformersConfig(**{**settings, **overrides})).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "layer_norm" in name:
                tensor.uniform_(0.5, 1.5)
            elif "SelfAttention" in name or "EncDecAttention" in name:
                tensor.mul_(3.0)
    model.to(dtype).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


def tokenizer(*, ends_prompts: bool = True) -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{word(number): number + 3 for number in range(NUM_WORDS)}}
    fast = Tokenizer(WordLevel(words, unk_token="<unk>"))
    fast.pre_tokenizer = WhitespaceSplit()
    if ends_prompts:
        fast.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=MODEL_MAX_LENGTH
    )


def word(number: int) -> str:
    return f"w{number}"


def pico_tasks(num_items: int = 12, *, seed: int = 0) -> TaskSet:
    """Two task types whose prompts share no word, so that they activate different experts."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for task_type, first in (("left", 0), ("right", NUM_WORDS // 2)):
        for number in range(num_items):
            length = int(torch.randint(2, 8, (1,), generator=generator))
            picked = torch.randint(0, NUM_WORDS // 2, (length,), generator=generator) + first
            prompt = " ".join(word(int(index)) for index in picked)
            items.append(TaskItem(task_type, f"{task_type}-{number:03d}", prompt, (f"{word(int(picked[0]))} {word(int(picked[-1]))}",)))
    return TaskSet("pico", tuple(items), {"left": "exact_match", "right": "f1"})
