"""The `math` task: boxed answers compared as mathematics, and equalities inside a derivation."""
