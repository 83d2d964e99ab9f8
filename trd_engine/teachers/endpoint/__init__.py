"""The HTTP client of OpenAI-compatible servers that act as a teacher."""
