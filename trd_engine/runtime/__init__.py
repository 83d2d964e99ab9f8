"""What every process needs: errors, processes, seeds, events, hardware, JSON. Imports no other room."""
