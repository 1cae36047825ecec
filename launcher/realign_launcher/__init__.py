"""Brings a cluster up from a hostfile, runs a command on it, and takes down what it started."""
