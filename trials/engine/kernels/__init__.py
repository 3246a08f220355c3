"""Element-wise operations and attention, each in torch and in Triton; both must give equal results."""
