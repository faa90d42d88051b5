"""Who may ask for what: tenants, their keys, rights and quotas, and TLS."""
