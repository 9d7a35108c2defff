"""Outbound: what speaks each provider type's API."""
