"""Two to sixteen unequal Macs as one machine that curates data for, trains and gates language models."""

__version__ = "0.1.0"
