"""Ground floor: all that knows Redis, and nothing that pickles."""
