"""What a configuration costs: parameters, FLOPs, memory, balance. One formula each, no torch."""
