"""What the gateway costs and withstands: `python -m benchmarks NAME` writes it into bench.md."""
