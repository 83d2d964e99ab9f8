"""Where rows come from (`readers`), and what they mean (`shapes` and one module a family of them)."""
