"""CPU kernels that make FP32 training faster at full FP32 precision."""
