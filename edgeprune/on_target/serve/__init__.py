"""What serves an artifact over HTTP; it runs on the target, where edgeprune is not installed."""
