"""What the student wrote, and what refining made of it."""
