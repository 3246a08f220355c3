"""One optimizer step over an adapter as one flat tensor."""
