"""Commands around the product; `scripts/demo` makes the demo's data and model, `scripts/smollm2` a small real model."""
