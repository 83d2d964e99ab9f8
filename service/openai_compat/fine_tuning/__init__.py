"""Jobs, which the `openai` client knows as fine-tuning jobs."""
