"""Everything that touches the world: providers, transports, the HTTP front door, the CLI."""
