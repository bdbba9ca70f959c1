"""Ways in: flags and wstunnel.toml become Settings; every error at once, each with its place."""
