"""Configurations of GPT-NeoX and Megatron-LM as configurations of ours."""
