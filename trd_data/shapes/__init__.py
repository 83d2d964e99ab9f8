"""The shapes that rows come in: `choose` finds a row's shape, one module per family reads it."""
