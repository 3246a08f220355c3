"""The base model: shape, loading, quantised cache, adapter files, memory it takes."""
