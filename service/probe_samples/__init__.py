"""What the student answers to a few fixed problems over its run."""
