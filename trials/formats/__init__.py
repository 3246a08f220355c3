"""Rows of every format become conversations; what a row may not hold is refused."""
