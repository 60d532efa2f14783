"""What `python -m benchmarks ratios` measures, one file per rival: each returns figures and the parity beside them."""
