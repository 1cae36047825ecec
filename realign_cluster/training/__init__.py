"""One training rank: the process below a daemon that holds the model, computes its part of every step, and keeps its
state.
"""
