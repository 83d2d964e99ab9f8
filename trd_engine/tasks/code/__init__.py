"""The `code` task: programs that are run against tests in the sandbox."""
