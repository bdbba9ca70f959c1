"""The ways in: flags and wstunnel.toml -> Settings, with every error at once and in its place."""
