"""What advtrain costs, measured: `python -m benchmarks` lists the benchmarks."""
