"""What makes FP32 training on a CPU fast without changing a number."""
