"""Jobs: admission, submission, status, actions, and estimates."""
