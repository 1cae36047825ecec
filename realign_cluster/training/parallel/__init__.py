"""Ways to spread one model's training over ranks, behind one protocol (`base.Strategy`)."""
