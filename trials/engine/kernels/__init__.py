"""Element-wise operations and attention, in torch and in Triton, that must equal each other."""
