import json
import random
import re
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralForCausalLM, PreTrainedTokenizerBase

from scripts.demo.claims import draw_case
from scripts.demo.make_base import excluded_premises, held_out_tokens, main
from scripts.demo.make_data import DEMO_FOLDER
from scripts.demo.pretraining import (
    Pretraining,
    model_config,
    model_perplexity,
    packed_tokens,
    pretrain,
    unigram_perplexity,
    widen_attention_inputs,
)
from scripts.demo.text import documents
from trials.formats.conversations import json_answer
from trials.formats.nli import NLI_INSTRUCTION, nli_prompt

pytestmark = pytest.mark.slow

BASE = DEMO_FOLDER / "base"


@pytest.fixture(scope="module")
def model() -> MistralForCausalLM:
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in (DEMO_FOLDER / "dev.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_model_is_a_small_mistral_that_nf4_can_quantise(model: MistralForCausalLM) -> None:
    assert isinstance(model, MistralForCausalLM)
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    linears = [module for module in model.model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 7 * model.config.num_hidden_layers
    assert all(side % 64 == 0 for linear in linears for side in linear.weight.shape)


def test_the_weights_are_bfloat16_and_fit_4_mib() -> None:
    assert (BASE / "model.safetensors").stat().st_size <= 4 * 1024 * 1024
    stored = AutoModelForCausalLM.from_pretrained(BASE, dtype="auto")
    assert {parameter.dtype for parameter in stored.parameters()} == {torch.bfloat16}


def test_the_model_learned_its_text(model: MistralForCausalLM) -> None:
    plan, bpe = Pretraining(), Tokenizer.from_file(str(BASE / "tokenizer.json"))
    training = packed_tokens(bpe, plan.seed, 1, 2000, ())
    held_out = held_out_tokens(bpe, plan, count=300)
    ours, unigram = model_perplexity(model, held_out), unigram_perplexity(training, held_out, plan.vocab_size)
    assert ours <= unigram / 3


def test_the_card_says_what_the_model_is(model: MistralForCausalLM) -> None:
    card, plan = (BASE / "README.md").read_text(encoding="utf-8"), Pretraining()
    assert "license: apache-2.0" in card
    assert f"{model.num_parameters():,}" in card
    assert f"{plan.steps} steps of {plan.windows_per_step} windows" in card
    perplexities = re.findall(r"perplexity \| ([\d.]+) a token |unigram model \| ([\d.]+) a token", card)
    assert len(perplexities) == 2


def test_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len(tokenizer) == Pretraining().vocab_size
    assert tokenizer("Anna sings.").input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in tokenizer("Anna sings.").input_ids
    for special in ("[INST]", "[/INST]"):
        assert len(tokenizer(special, add_special_tokens=False).input_ids) == 1


def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "Anna  has 14\tfigs, ça va? 猫 \n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_prompt_and_completion_tokenized_apart_are_the_chat(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, str]]
) -> None:
    for row in rows[:100]:
        user = {"role": "user", "content": nli_prompt(row["premise"], row["hypothesis"])}
        answer = {"role": "assistant", "content": json_answer(row["thought_process"], int(row["label"]))}
        prompt = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
        assert prompt == f"<s>[INST] {user['content']} [/INST]"
        apart = [
            *tokenizer(prompt, add_special_tokens=False).input_ids,
            *tokenizer(f" {answer['content']}</s>", add_special_tokens=False).input_ids,
        ]
        chat = tokenizer.apply_chat_template([user, answer], tokenize=True, return_dict=True)["input_ids"]
        assert apart == list(chat)
        assert len(apart) <= 140


def test_a_system_turn_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(Exception, match="user and assistant"):
        tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}], tokenize=False)


def test_the_text_has_neither_the_task_nor_its_rows(rows: list[dict[str, str]]) -> None:
    texts = list(documents(Pretraining().seed, 0, 10_000, excluded_premises()))
    text = "".join(texts)
    for foreign in (
        "thought_process",
        "predicted_label",
        "the premise says",
        *(sentence for sentence in re.split(r"(?<=[.?:]) ", NLI_INSTRUCTION) if len(sentence) > 20),
    ):
        assert foreign not in text
    assert not re.search(r"(Premise|Hypothesis): [A-Z]", text)  # the glossary's words are in lower case
    # A premise of one sentence may turn up as a claim, but never with what is to be concluded from it.
    known = [row for row in rows if row["premise"] in text]
    assert all(row["premise"].count(".") == 1 for row in known)
    assert not [row for row in known for one in texts if row["premise"] in one and row["hypothesis"] in one]


def test_excluded_premises_are_left_out() -> None:
    free = draw_case(random.Random(3), ())
    assert draw_case(random.Random(3), {free.premise}).premise != free.premise


def test_documents_depend_on_seed_and_shard_alone() -> None:
    first = list(documents(1, 0, 50, ()))
    assert first == list(documents(1, 0, 50, ()))
    assert first != list(documents(1, 1, 50, ()))
    assert first != list(documents(2, 0, 50, ()))


def test_unigram_perplexity_by_hand() -> None:
    training, held_out = np.array([0, 0, 0, 1], dtype=np.uint16), np.array([1, 0, 0, 1], dtype=np.uint16)
    # Counts plus one: 4, 2 and 1 of 7; each window's first token is not predicted.
    expected = (4 / 7 * 2 / 7) ** -0.5
    assert unigram_perplexity(training, held_out, 3, window_tokens=2) == pytest.approx(expected)


def test_widening_keeps_the_function() -> None:
    torch.manual_seed(0)
    fresh = MistralForCausalLM(model_config(64)).eval()
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        before = fresh(tokens).logits
        widen_attention_inputs(fresh, 8.0)
        assert torch.equal(fresh(tokens).logits, before)
    assert torch.all(fresh.model.layers[0].input_layernorm.weight == 8.0)


def test_pretraining_learns_within_a_few_steps() -> None:
    plan = Pretraining(steps=25, windows_per_step=8, window_tokens=64, warmup_steps=2)
    tokens = packed_tokens(Tokenizer.from_file(str(BASE / "tokenizer.json")), 5, 1, 300, ())
    trained = pretrain(tokens, plan, "cpu")
    assert model_perplexity(trained, tokens[:8000]) < 0.5 * plan.vocab_size


def test_the_script_makes_the_committed_tokenizer_and_a_model_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = ("--steps", "1", "--windows-per-step", "2", "--shards", "1", "--documents-per-shard", "50")
    monkeypatch.setattr(sys, "argv", ["make_demo_base", *size, "--to", str(tmp_path)])
    main()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (BASE / name).read_bytes()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = AutoTokenizer.from_pretrained(tmp_path)("Anna", return_tensors="pt")
    assert loaded.generate(**prompt, max_new_tokens=3).shape[1] <= prompt["input_ids"].shape[1] + 3


def test_every_word_of_the_rows_is_few_tokens(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, str]]) -> None:
    words = set(chain(*(re.findall(r"[A-Za-z]+", row["premise"]) for row in rows)))
    pieces = [len(tokenizer(f" {word}", add_special_tokens=False).input_ids) for word in words]
    assert sum(pieces) / len(pieces) <= 1.3
