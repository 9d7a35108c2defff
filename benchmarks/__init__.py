"""What the gateway costs, measured: `python -m benchmarks NAME` writes its part of bench.md."""
