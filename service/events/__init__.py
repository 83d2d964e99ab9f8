"""What happened to a job: numbered events, in pages and as a stream."""
