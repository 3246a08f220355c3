"""Full weights with an adapter merged in."""

from __future__ import annotations

from pathlib import Path

from trials.config import ModelSettings


def merge(adapter: Path, base: ModelSettings, target: Path) -> None:
    """Write base plus adapter as plain weights, with the tokenizer, to `target`.

    A base that was trained on in 4 bits is merged as its dequantised 4-bit values. The adapter has learned to
    compensate for their rounding. Merged into the original weights, it would be another model than the one that was
    evaluated.
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
