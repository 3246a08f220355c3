"""Full weights with an adapter merged in."""

from __future__ import annotations

from pathlib import Path

from trials.config import ModelSettings


def merge(adapter: Path, base: ModelSettings, target: Path) -> None:
    """Writes base plus adapter as plain weights, with the tokenizer, to `target`.

    A base that was trained on in 4 bits is merged as its dequantised 4-bit values: the adapter has learned to make up
    for their rounding, and merged into the original weights it would be another model than the one that was measured.
    """
    from peft import PeftModel

    from trials.model.loading import load_base, load_tokenizer

    model = load_base(base)
    if getattr(model, "quantization_method", None) is not None:
        model.dequantize()
    model.config.use_cache = True
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(str(target))
    load_tokenizer(ModelSettings(name=str(adapter))).save_pretrained(str(target))
