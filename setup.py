"""The packages of an installation; everything else about it is in pyproject.toml.

The kernels' sources and the configurations lie at the top of a checkout, where people look for
them. An installation has them inside the package, as `shipped_folder` in config/shipped.py expects.
"""

from setuptools import find_packages, setup

SHIPPED = {"megatron_gptx.configs": "configs", "megatron_gptx.csrc": "csrc"}

setup(
    packages=[*find_packages(include=["megatron_gptx*"]), *SHIPPED],
    package_dir={"megatron_gptx": "megatron_gptx", **SHIPPED},
)
