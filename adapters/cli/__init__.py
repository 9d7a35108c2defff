"""The `inference-gateway` command."""
