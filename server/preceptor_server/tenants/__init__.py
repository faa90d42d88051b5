"""Who may ask, and for how much: keys, rights, quotas, TLS. Knows neither gRPC's messages nor a web framework."""
