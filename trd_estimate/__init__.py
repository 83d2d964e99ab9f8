"""What a run will take, before it runs: tokens, memory by owner, disk and time of each phase.

Arithmetic on the sizes of models and on the spec. The service's dry run and ``python -m trd_engine estimate`` use the
same functions, and the engine its constants. Imports only the standard library.
"""
