"""The REST API: validates, records, shows and streams; it never trains.

Talks to the workers through the database, and rings the broker's doorbell. Never imports torch,
`worker` or `trd_engine`.
"""
