"""Head-to-head: what a user may do with a fixed wall clock, each for real on the same rows, judged on rows unseen."""
