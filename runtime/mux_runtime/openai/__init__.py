"""What both HTTP processes share: OpenAI's schemas, errors and events, and first-hop series."""
