"""Pictures, videos and sound: reading on one clock, fitting to a size, writing. Heavy libraries load on first use."""
