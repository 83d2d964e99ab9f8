"""Pages for people, rendered from the use cases of the other nouns; they have no query."""
