"""The command line ``trd``: what a person does with the service, on top of the client.

Owns words, tables and pictures in a terminal; asks the service for everything else. Answers go to the standard
output, all else to the standard error; ``--json`` prints what the service says and nothing more.
"""
