"""API keys: create, list, revoke and recognise them."""
