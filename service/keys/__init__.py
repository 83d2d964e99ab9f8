"""API keys: create, list, rotate, revoke and recognise them; sessions of the dashboard, and tokens of an identity
provider."""
