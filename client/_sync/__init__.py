"""The sync client, generated from `client._async`."""
