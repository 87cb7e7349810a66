"""What the benchmarks share. Run the scripts beside this folder, not what is in it."""
