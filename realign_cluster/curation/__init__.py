"""What data is worth training on: duplicates, contamination, preference pairs, mixes, splits. Knows no model."""
