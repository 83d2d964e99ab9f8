"""What is asked and what is right: one module or folder per task, all behind `protocol.Task`."""
