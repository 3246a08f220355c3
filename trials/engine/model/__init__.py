"""The frozen decoder: weights, packed batch, activations, loss."""
