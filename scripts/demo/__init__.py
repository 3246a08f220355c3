"""Makes the demo's data and model."""
