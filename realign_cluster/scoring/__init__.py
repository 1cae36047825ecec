"""The scoring worker: the one part of a scoring run that imports MLX. Started by a daemon as a child process, see
`worker`.
"""
