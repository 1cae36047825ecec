"""What an answer, a verifier or a model is worth: one definition, one unit and one file for each metric.

Pure functions: no clock, no file, no model. What a verifier said comes in as data, so that verdicts can be computed by
a cluster first. A metric whose denominator is empty is None and says how many items were undefined, never 0 or 1.
"""
