"""What the seven-stage workflows are: tables of stages, what each asks for, and what is made of the answers.

Nothing here starts anything: stages yield jobs and get their results; the coordinator runs them.
"""
