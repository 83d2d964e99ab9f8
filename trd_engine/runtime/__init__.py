"""What every process needs: errors, processes and their files, seeds, events, the remaining time, hardware. Imports
no other room."""
