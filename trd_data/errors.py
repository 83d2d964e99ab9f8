"""What can be wrong with data and with a model's prompts.

ValueError
├── RowError             one row: the field at fault and what is wrong with it
│   └── MissingFieldError    a field that the row must have
├── DataFileError        the whole file cannot be read
│   └── FileTooLargeError    it has more rows or bytes than allowed
└── PromptError          the model's folder has no usable chat template, tokenizer or prompt templates
"""

from __future__ import annotations


class RowError(ValueError):
    """One thing that is wrong with a row; the message names the field, its value and what it must be."""

    def __init__(self, field: str | None, message: str) -> None:
        """`field`: None if the row as a whole is at fault."""
        super().__init__(message)
        self.field = field
        self.message = message


class MissingFieldError(RowError):
    """A field that the row must have, under one of its usual names."""


class DataFileError(ValueError):
    """A file that cannot be read."""


class FileTooLargeError(DataFileError):
    """A file with more rows or bytes than allowed."""


class PromptError(ValueError):
    """A model whose prompts cannot be written, for the reason in the message."""
