"""lighttpd.conf as it stands -> Settings: grammar (text), evaluate (values), cells (conditions), convert (meaning)."""
