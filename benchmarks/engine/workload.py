"""The work that `benchmarks.engine.throughput` measures: a random Mistral, a tokenizer of one word a token, and rows.

WORK/bf16  WORK/nf4               the model and its 4-bit form, each with the tokenizer
WORK/short.jsonl  WORK/long.jsonl rows of 260 tokens on average, as the CoT-NLI data has them, and of 2,048 tokens
WORK/eval.jsonl                   further short rows
Rows are `{prompt, completion}`; the completion, with its EOS, is the second half of a row's tokens. All is seeded.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trials.system.files import write_text

UNK_ID, BOS_ID, EOS_ID, PAD_ID, FIRST_WORD_ID = range(5)
LONG_ROW_TOKENS = 2048
ROW_COUNTS = {"short": 2048, "long": 256, "eval": 64}
_SEEDS = {"short": 0, "long": 1, "eval": 2}
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ message['content'] }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Size:
    """Dimensions of a Mistral, and the divisor by which rows are shorter than the real ones."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    row_divisor: int = 1

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Pairs (inputs, outputs) of the seven linear layers of one decoder layer: q, k, v, o, gate, up, down."""
        key_value = self.hidden // self.heads * self.key_value_heads
        wide = self.intermediate
        attention = [(self.hidden, self.hidden), *[(self.hidden, key_value)] * 2, (self.hidden, self.hidden)]
        return [*attention, (self.hidden, wide), (self.hidden, wide), (wide, self.hidden)]

    @property
    def frozen_weights(self) -> int:
        """Weights of all linear layers of all decoder layers, without embeddings and vocabulary projection."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears)


MISTRAL_7B = Size(32768, 4096, 14336, 32, 32, 8)
TINY = Size(1024, 128, 256, 2, 4, 2, row_divisor=8)


def row_lengths(rows: str, size: Size) -> list[int]:
    """Return the tokens of every row of short, long or eval, BOS and EOS included."""
    count = ROW_COUNTS[rows]
    if rows == "long":
        return [LONG_ROW_TOKENS // size.row_divisor] * count
    drawn = np.random.default_rng(_SEEDS[rows]).normal(260, 70, count)
    return [int(length) // size.row_divisor for length in np.clip(drawn, 96, 640)]


def prepare(work: Path, size: Size, device: str) -> None:
    """Make what isn't there yet; a folder or file that exists is whole."""
    work.mkdir(parents=True, exist_ok=True)
    for rows in ROW_COUNTS:
        if not (work / f"{rows}.jsonl").exists():
            _write_rows(work / f"{rows}.jsonl", row_lengths(rows, size), size.vocabulary, _SEEDS[rows])
    if not (work / "bf16").exists():
        _write_model(work / "bf16", size, device)
    if not (work / "nf4").exists():
        _write_nf4(work / "bf16", work / "nf4", device)


def read_rows(path: Path, count: int | None = None) -> list[list[int]]:
    """Return the token ids of the first `count` rows of a file, as the tokenizer and its chat template give them."""
    lines = path.read_text(encoding="utf-8").splitlines()[:count]
    rows = [json.loads(line) for line in lines]
    words = [f"{row['prompt']} {row['completion']}".split() for row in rows]
    return [[BOS_ID, *(int(word[1:]) for word in row), EOS_ID] for row in words]


def _write_rows(path: Path, lengths: Sequence[int], vocabulary: int, seed: int) -> None:
    rng = np.random.default_rng(seed + 1000)
    lines = []
    for length in lengths:
        words = [f"t{token}" for token in rng.integers(FIRST_WORD_ID, vocabulary, length - 2)]
        prompt = length // 2 - 1  # and BOS
        lines.append(json.dumps({"prompt": " ".join(words[:prompt]), "completion": " ".join(words[prompt:])}))
    write_text(path, "\n".join(lines) + "\n")


def _write_model(folder: Path, size: Size, device: str) -> None:
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        max_position_embeddings=32768,
        rope_theta=1e6,
        sliding_window=None,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = MistralForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    beside = _empty_beside(folder)
    model.save_pretrained(beside)
    _write_tokenizer(beside, size.vocabulary)
    beside.rename(folder)


def _write_nf4(source: Path, folder: Path, device: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from trials.model.loading import nf4_config

    model = AutoModelForCausalLM.from_pretrained(
        source,
        quantization_config=nf4_config(torch.bfloat16),
        dtype=torch.bfloat16,
        device_map={"": device},
        trust_remote_code=False,
    )
    beside = _empty_beside(folder)
    model.save_pretrained(beside)
    for file in source.glob("*token*"):
        shutil.copy(file, beside)
    for file in source.glob("*.jinja"):
        shutil.copy(file, beside)
    beside.rename(folder)


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    """Write a tokenizer of exactly `vocabulary` ids: id 17 is the word t17."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"<unk>": UNK_ID, "<s>": BOS_ID, "</s>": EOS_ID, "<pad>": PAD_ID}
    words = {f"t{token}": token for token in range(FIRST_WORD_ID, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(special | words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = _TEMPLATE
    fast.save_pretrained(folder)


def _empty_beside(folder: Path) -> Path:
    """Return a folder that gets the real name when it's whole: a run that was cut off leaves nothing half made."""
    return Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
