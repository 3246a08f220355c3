"""Makes SmolLM2-135M-Instruct from a GGUF file, where no model hub can be reached."""
