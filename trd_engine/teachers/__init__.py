"""Who supervises: a local model, a moving copy of the student, or a served model behind an HTTP endpoint."""
