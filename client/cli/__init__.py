"""The command line ``trd``, built on the client.

Owns texts, tables and charts in a terminal; everything else comes from the service. Results go to the standard output,
remarks to the standard error; ``--json`` prints exactly what the service returned.
"""
