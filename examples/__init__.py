"""Programs that use the service, or the engine, as a user would."""
