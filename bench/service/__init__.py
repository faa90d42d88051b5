"""What a shared server does under load and under faults: many real clients against real servers, on loopback."""
