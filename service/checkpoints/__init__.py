"""What a run keeps: listed, described, downloaded, deleted."""
