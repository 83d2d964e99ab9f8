"""The async client. ``python client/generate.py`` generates `client._sync` from it."""
